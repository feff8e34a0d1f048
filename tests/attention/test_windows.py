"""Partitions against index arithmetic, attention against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from tests import parity_helper

PARTITIONS = {
  "block": (attention.block_partition, attention.block_unpartition),
  "grid": (attention.grid_partition, attention.grid_unpartition),
}
ATTENTION = {
  "block": attention.block_attention,
  "grid": attention.grid_attention,
}
KINDS = sorted(PARTITIONS)


def _window_of(kind, y, x, height, width, p):
  """Returns (window, token) of a pixel, from the definitions of the paper."""
  if kind == "block":
    window, token = (y // p, x // p), (y % p, x % p)
    columns = width // p
  else:
    rows, columns = height // p, width // p
    window, token = (y % rows, x % columns), (y // rows, x // columns)
  return window[0] * columns + window[1], token[0] * p + token[1]


def _image(height=6, width=9, rest=(2,), seed=0):
  values = np.random.default_rng(seed).standard_normal(
    (2, height, width, *rest)
  )
  return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_goes_to_its_window(kind):
  image = _image()
  windows = PARTITIONS[kind][0](image, 3)
  assert windows.shape == (2, 6, 9, 2)
  for y in range(6):
    for x in range(9):
      window, token = _window_of(kind, y, x, 6, 9, 3)
      np.testing.assert_array_equal(windows[:, window, token], image[:, y, x])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rest", [(), (2,), (2, 3)])
@pytest.mark.parametrize(("height", "width", "p"), [(6, 9, 3), (7, 7, 7)])
def test_round_trip(kind, rest, height, width, p):
  partition, unpartition = PARTITIONS[kind]
  image = _image(height, width, rest)
  back = unpartition(partition(image, p), height, width)
  np.testing.assert_array_equal(back, image)


def test_grid_is_block_after_a_permutation():
  image, p = _image(), 3
  spread = image.reshape(2, p, 2, p, 3, 2)
  gathered = spread.transpose(0, 2, 1, 4, 3, 5).reshape(image.shape)
  np.testing.assert_array_equal(
    attention.grid_partition(image, p), attention.block_partition(gathered, p)
  )


def test_both_are_the_identity_on_one_window():
  image = _image(3, 3)
  for partition, _ in PARTITIONS.values():
    np.testing.assert_array_equal(
      partition(image, 3)[:, 0].ravel(), image.ravel()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_attention_stays_within_windows(kind):
  height, width, p, heads = 6, 9, 3, 2
  q, k, v = (_image(rest=(heads, 5), seed=seed) for seed in range(3))
  bias = jax.random.normal(jax.random.key(0), (heads, p * p, p * p))
  out = ATTENTION[kind](q, k, v, window_size=p, bias=bias, scale=0.7)

  # Full attention over all pixels, with -inf between windows.
  places = [
    _window_of(kind, y, x, height, width, p)
    for y in range(height)
    for x in range(width)
  ]
  window, token = np.array(places).T
  dense = np.asarray(bias)[:, token[:, None], token[None]]
  dense = np.where((window[:, None] == window[None])[None], dense, -np.inf)
  flat = (x.reshape(2, height * width, heads, 5) for x in (q, k, v))
  full = attention.dot_product_attention(
    *flat, bias=jnp.asarray(dense), scale=0.7
  )
  np.testing.assert_allclose(out, full.reshape(out.shape), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_bfloat16(kind):
  q, k, v = (_image(6, 9, (2, 5), seed) for seed in range(3))
  bias = jax.random.normal(jax.random.key(0), (2, 9, 9))
  inputs = [x.astype(jnp.bfloat16) for x in (q, k, v, bias)]

  def loss(inputs):
    q, k, v, bias = inputs
    out = ATTENTION[kind](q, k, v, window_size=3, bias=bias)
    assert out.dtype == q.dtype
    return jnp.sum(jnp.sin(out.astype(jnp.float32)))

  exact = jax.grad(loss)([x.astype(jnp.float32) for x in inputs])
  for value, expected in zip(jax.grad(loss)(inputs), exact, strict=True):
    assert jnp.abs(expected).max() > 0
    error = jnp.abs(value.astype(jnp.float32) - expected).max()
    assert error < 0.03 * jnp.abs(expected).max()


@pytest.mark.usefixtures("unchecked")
def test_errors_say_what_would_fit():
  x = _image(6, 10, (2, 5))
  with pytest.raises(ValueError, match=r"6 x 10.*size 3.*6 high.*9 or 12 wide"):
    attention.block_attention(x, x, x, window_size=3)
  with pytest.raises(ValueError, match="7 high and 7 or 14 wide"):
    attention.grid_partition(x, 7)
  with pytest.raises(ValueError, match="window_size is 0"):
    attention.block_partition(x, 0)
  with pytest.raises(ValueError, match=r"bias has shape .*need \(2, 4, 4\)"):
    attention.grid_attention(x, x, x, window_size=2, bias=jnp.ones((2, 9, 9)))
  with pytest.raises(ValueError, match="k has shape"):
    attention.grid_attention(x, x[:, :4], x, window_size=2)
  with pytest.raises(ValueError, match="do not tile height 6 x width 9"):
    attention.block_unpartition(jnp.ones((1, 4, 4)), 6, 9)


@pytest.mark.parametrize("kind", KINDS)
def test_implementations_are_chosen_by_name(kind):
  x = _image(6, 9, (2, 5))
  run = lambda name: ATTENTION[kind](
    x, x, x, window_size=3, implementation=name
  )
  # There is no kernel for the platform of the tests.
  np.testing.assert_array_equal(run("auto"), run("xla"))
  with pytest.raises(ValueError, match="no kernel for the platform 'cpu'"):
    run("pallas")
  with pytest.raises(ValueError, match="'cuda'; it must be one of"):
    run("cuda")


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_equals_timm_partitions_and_torch_attention(kind):
  torch, _ = parity_helper.import_timm()
  from timm.models import maxxvit

  q, k, v = (_image(14, 21, (3, 8), seed) for seed in range(3))
  bias = np.random.default_rng(3).standard_normal((3, 49, 49), np.float32)
  out = ATTENTION[kind](q, k, v, window_size=7, bias=jnp.asarray(bias))

  partition, back = (
    (maxxvit.window_partition, maxxvit.window_reverse)
    if kind == "block"
    else (maxxvit.grid_partition, maxxvit.grid_reverse)
  )
  windows = (
    partition(torch.tensor(np.asarray(x)).flatten(3), (7, 7))
    .reshape(-1, 49, 3, 8)
    .transpose(1, 2)
    for x in (q, k, v)
  )
  expected = torch.nn.functional.scaled_dot_product_attention(
    *windows, attn_mask=torch.tensor(bias)
  )
  expected = expected.transpose(1, 2).reshape(-1, 7, 7, 24)
  expected = back(expected, (7, 7), (14, 21)).reshape(out.shape)
  np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)
