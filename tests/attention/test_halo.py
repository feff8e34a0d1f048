"""Halo attention: golden numbers, timm, and what it equals by definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from tests.parity_helper import fill, import_timm

_halo = jax.jit(
  attention.halo_attention,
  static_argnames=(
    "block_size",
    "halo_size",
    "stride",
    "scale",
    "scale_positions",
    "mask_padding",
    "implementation",
  ),
)


def _golden(shape, phase, size):
  n = np.arange(np.prod(shape))
  return (size * np.sin(0.7 * (n + 1) + phase)).reshape(shape)


def _golden_arguments(stride=1):
  """The inputs of the golden numbers: 8 channels, 2 heads, 8 x 8 tokens."""
  image = _golden((1, 8, 8, 8), 0, 1).transpose(0, 2, 3, 1)  # NCHW to NHWC
  q = image[:, ::stride, ::stride] @ _golden((8, 8), 1, 0.3).T
  kv = (image @ _golden((16, 8), 2, 0.3).T).reshape(1, 8, 8, 2, 8)
  arrays = {
    "q": q.reshape(1, 8 // stride, 8 // stride, 2, 4),
    "k": kv[..., :4],
    "v": kv[..., 4:],
    "relative_height": _golden((11, 4), 3, 0.5),
    "relative_width": _golden((11, 4), 4, 0.5),
  }
  return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


def _golden_output(**options):
  arguments = _golden_arguments(options.get("stride", 1))
  out = _halo(**arguments, block_size=4, halo_size=1, **options)
  return out.reshape(*out.shape[1:3], 8)  # heads side by side: [y, x, channel]


def test_golden_numbers():
  out = _golden_output()
  np.testing.assert_allclose(out.sum(), -3.68030098, atol=2e-5)
  np.testing.assert_allclose(jnp.abs(out).sum(), 174.86895, rtol=1e-6)
  first = [-0.188208194, -0.404707189, -0.469908187, 0.0454509178]
  np.testing.assert_allclose(out[0, :4, 0], first, atol=1e-6)
  last = [0.141011124, 0.185971628]
  np.testing.assert_allclose(out[-1, -2:, 7], last, atol=1e-6)


def test_golden_numbers_with_strided_queries():
  out = _golden_output(stride=2)
  assert out.shape == (4, 4, 8)
  np.testing.assert_allclose(out.sum(), -1.23580875, atol=1e-5)
  np.testing.assert_allclose(jnp.abs(out).sum(), 42.741514, rtol=1e-6)
  first = [-0.188208194, -0.391474675, -0.211278516, -0.0117241942]
  np.testing.assert_allclose(out[0, :, 0], first, atol=1e-6)


def test_golden_numbers_of_a_pooled_output():
  out = _golden_output().reshape(4, 2, 4, 2, 8).mean((1, 3))
  np.testing.assert_allclose(out.sum(), -0.920075244, atol=1e-5)
  first = [-0.139749365, -0.234918074, -0.214113708, 0.078024102]
  np.testing.assert_allclose(out[0, :, 0], first, atol=1e-6)


def test_golden_numbers_with_scaled_positions():
  out = _golden_output(scale_positions=True)
  np.testing.assert_allclose(out.sum(), -2.87196754, atol=2e-5)


def _draw(batch, height, width, heads, dim, v_dim, window, stride=1, seed=0):
  rng = np.random.default_rng(seed)
  shapes = {
    "q": (batch, height // stride, width // stride, heads, dim),
    "k": (batch, height, width, heads, dim),
    "v": (batch, height, width, heads, v_dim),
    "relative_height": (2 * window - 1, dim),
    "relative_width": (2 * window - 1, dim),
  }
  return {
    name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for name, shape in shapes.items()
  }


def _one_query_at_a_time(arguments, block, halo, stride, mask_padding, scale):
  """The definition in loops, float64."""
  q, k, v, rel_h, rel_w = (
    np.asarray(x, np.float64) for x in arguments.values()
  )
  window = block + 2 * halo
  _, height, width, _, _ = k.shape
  out = np.zeros((*q.shape[:4], v.shape[-1]))
  for b, y, x, n in np.ndindex(q.shape[:4]):
    vector = q[b, y, x, n]
    top = y * stride // block * block - halo
    left = x * stride // block * block - halo
    scores, values = [], []
    for i, j in np.ndindex(window, window):
      row, column = top + i, left + j
      inside = 0 <= row < height and 0 <= column < width
      if not inside and mask_padding:
        continue
      y_offset = i - y % (block // stride) + window - 1
      x_offset = j - x % (block // stride) + window - 1
      key = k[b, row, column, n] if inside else 0 * vector
      scores.append(
        scale * vector @ key
        + vector @ rel_h[y_offset]
        + vector @ rel_w[x_offset]
      )
      values.append(v[b, row, column, n] if inside else 0 * v[0, 0, 0, 0])
    weights = np.exp(np.array(scores) - np.max(scores))
    out[b, y, x, n] = weights @ np.array(values) / weights.sum()
  return out


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("block", "halo"), [(4, 1), (2, 3), (8, 2)])
def test_equals_one_query_at_a_time(block, halo, stride, mask_padding):
  # halo 3 around blocks of 2: a window reaches beyond the nearest blocks.
  arguments = _draw(1, 8, 8, 2, 4, 3, block + 2 * halo, stride)
  out = _halo(
    **arguments,
    block_size=block,
    halo_size=halo,
    stride=stride,
    mask_padding=mask_padding,
    scale=0.4,
  )
  expected = _one_query_at_a_time(
    arguments, block, halo, stride, mask_padding, 0.4
  )
  np.testing.assert_allclose(out, expected, atol=5e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_map_in_the_open_gives_the_output(stride):
  arrays = _golden_arguments(stride)
  q, k, v = (arrays.pop(name) for name in "qkv")
  blocks = {"block_size": 4, "halo_size": 1}

  @jax.jit
  def run(q, k, v):
    weights = attention.halo_attention_weights(
      q, k, **blocks, **arrays, stride=stride, mask_padding=True
    )
    return weights, attention.apply_halo_attention_weights(weights, v, **blocks)

  weights, out = run(q, k, v)
  queries = (4 // stride) ** 2
  assert weights.shape == (1, 2, 2, 2, queries, 36)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
  # The first block sees nothing above it, in the first row of its window.
  assert (weights[0, 0, 0, :, :, :6] == 0).all()
  expected = _halo(
    q, k, v, **blocks, **arrays, stride=stride, mask_padding=True
  )
  np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(("stride", "mask_padding"), [(1, False), (2, True)])
def test_a_bias_of_queries_and_keys(stride, mask_padding):
  """Embeddings of one channel of ones are a bias of rows and of columns."""
  arrays = _draw(1, 8, 12, 2, 4, 3, 6, stride)
  rows, columns = arrays["relative_height"], arrays["relative_width"]
  # The last channel of all queries is 1, and that of the keys nothing.
  q = arrays["q"].at[..., -1].set(1.0)
  k = arrays["k"].at[..., -1].set(0.0)
  only_last = jnp.zeros(4).at[-1].set(1.0)[None]
  options = {"block_size": 4, "halo_size": 1, "stride": stride}
  options |= {"mask_padding": mask_padding}
  expected = _halo(
    q,
    k,
    arrays["v"],
    relative_height=rows[:, -1:] * only_last,
    relative_width=columns[:, -1:] * only_last,
    **options,
  )
  side = 4 // stride
  offset = np.arange(6)[None] - np.arange(side)[:, None] + 5
  by_row = rows[offset, -1][:, None, :, None]
  by_column = columns[offset, -1][None, :, None, :]
  bias = (by_row + by_column).reshape(1, side**2, 36)
  # The second head has its own.
  bias = jnp.concatenate([bias, 0 * bias])
  out = _halo(q, k, arrays["v"], bias=bias, **options)
  np.testing.assert_allclose(out[..., 0, :], expected[..., 0, :], atol=2e-6)
  plain = _halo(q, k, arrays["v"], **options)
  np.testing.assert_allclose(out[..., 1, :], plain[..., 1, :], atol=2e-6)
  weights = attention.halo_attention_weights(q, k, bias=bias, **options)
  again = attention.apply_halo_attention_weights(
    weights, arrays["v"], block_size=4, halo_size=1
  )
  np.testing.assert_allclose(again, out, atol=2e-6)


def test_one_block_without_halo_is_global_attention():
  arguments = _draw(2, 4, 4, 3, 8, 8, 4)
  out = _halo(**arguments, block_size=4, halo_size=0)
  q, k, v, rel_h, rel_w = arguments.values()
  tokens = lambda x: x.reshape(2, 16, 3, 8)
  offset = np.arange(4)[None] - np.arange(4)[:, None] + 3
  bias = jnp.einsum("byxnd,yid->bnyxi", q, rel_h[offset])[..., None]
  bias += jnp.einsum("byxnd,xjd->bnyxj", q, rel_w[offset])[..., None, :]
  expected = attention.dot_product_attention(
    tokens(q), tokens(k), tokens(v), bias=bias.reshape(2, 3, 16, 16)
  )
  np.testing.assert_allclose(tokens(out), expected, atol=2e-6)


def test_rows_of_tables_that_are_never_read_have_no_gradient():
  arguments = _draw(1, 8, 8, 2, 4, 4, 6)

  def loss(tables):
    out = _halo(**{**arguments, **tables}, block_size=4, halo_size=1)
    return jnp.sum(out**2)

  names = ("relative_height", "relative_width")
  gradients = jax.grad(loss)({name: arguments[name] for name in names})
  for name, gradient in gradients.items():
    assert not gradient[:2].any(), name
    assert (gradient[2:] != 0).all(), name


def test_no_tables_mean_no_positions():
  arguments = _draw(1, 4, 4, 1, 4, 4, 4)
  zeros = {name: 0 * arguments[name] for name in ("relative_height",)}
  given = {**arguments, **zeros}
  missing = {**arguments, "relative_height": None}
  run = lambda x: _halo(**x, block_size=2, halo_size=1)
  np.testing.assert_array_equal(run(missing), run(given))


def test_bfloat16_is_accumulated_in_float32():
  arguments = _draw(1, 8, 8, 2, 8, 8, 6)
  run = lambda x: _halo(**x, block_size=4, halo_size=1)
  half = {name: x.astype(jnp.bfloat16) for name, x in arguments.items()}
  out = run(half)
  assert out.dtype == jnp.bfloat16
  rounded = {name: x.astype(jnp.float32) for name, x in half.items()}
  np.testing.assert_allclose(
    out.astype(jnp.float32), run(rounded), atol=2e-2, rtol=2e-2
  )


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"block_size": 3}, "blocks of block_size 3 do not tile"),
    ({"block_size": 0}, "block_size is 0"),
    ({"halo_size": -1}, "halo_size is -1"),
    ({"stride": 3}, "use stride 1 and average-pool"),
    ({"stride": 2}, r"need \(1, 4, 4, 2, 4\)"),
    ({"stride": 0}, "stride is 0"),
    ({"halo_size": 2}, "relative_height has shape"),
    ({"q": jnp.zeros((1, 8, 4, 2, 4))}, "q has shape"),
    ({"implementation": "pallas"}, "no kernel for the platform 'cpu'"),
  ],
)
def test_errors(changes, message):
  arguments = _draw(1, 8, 8, 2, 4, 4, 6)
  options = {"block_size": 4, "halo_size": 1}
  with pytest.raises(ValueError, match=message):
    _halo(**{**arguments, **options, **changes})


@pytest.mark.parity
@pytest.mark.parametrize(
  "options",
  [
    {},
    {"stride": 2},
    {"scale_pos_embed": True},
    {"halo_size": 3, "block_size": 8, "dim_head": 8},
    {"v_ratio": 0.5},
  ],
)
def test_equals_timm(options):
  torch, _ = import_timm()
  from timm.layers.halo_attn import HaloAttn

  options = {"block_size": 4, "halo_size": 1, "num_heads": 3, **options}
  v_ratio = options.pop("v_ratio", 1.0)
  dim, heads = 24, options["num_heads"]
  module = HaloAttn(
    dim, dim_out=dim if v_ratio == 1.0 else dim // 2, qk_ratio=1 / v_ratio,
    **options,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  weights = {
    name: rng.standard_normal(x.shape).astype(np.float32) * 0.3
    for name, x in module.state_dict().items()
  }
  fill(module, weights)
  image = rng.standard_normal((2, 16, 8, dim)).astype(np.float32)
  with torch.inference_mode():
    expected = module(torch.from_numpy(image).permute(0, 3, 1, 2))
  expected = expected.permute(0, 2, 3, 1).numpy()

  stride = options.get("stride", 1)
  q = image[:, ::stride, ::stride] @ weights["q.weight"][:, :, 0, 0].T
  q = q.reshape(*q.shape[:3], heads, -1)
  kv = image @ weights["kv.weight"][:, :, 0, 0].T
  kv = kv.reshape(*kv.shape[:3], heads, -1)
  k, v = np.split(kv, [q.shape[-1]], axis=-1)
  out = _halo(
    *map(jnp.asarray, (q, k, v)),
    block_size=options["block_size"],
    halo_size=options["halo_size"],
    relative_height=jnp.asarray(weights["pos_embed.height_rel"]),
    relative_width=jnp.asarray(weights["pos_embed.width_rel"]),
    stride=stride,
    scale_positions=options.get("scale_pos_embed", False),
  )
  out = out.reshape(expected.shape)
  np.testing.assert_allclose(out, expected, atol=1e-5)
