"""Against brute force in numpy, against jax.nn and PyTorch, at odd sizes."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import attention
from attention import masks, scores
from tests import parity_helper
from tests.attention import slot_kinds, slots


def _inputs(batch=(2,), q_len=5, kv_len=7, heads=3, dim=4, v_dim=6, seed=0):
  rng = np.random.default_rng(seed)
  shapes = (
    (*batch, q_len, heads, dim),
    (*batch, kv_len, heads, dim),
    (*batch, kv_len, heads, v_dim),
    (heads, q_len, kv_len),
  )
  return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def _brute_force(q, k, v, bias, scale):
  q, k, v, bias = (np.asarray(x, np.float64) for x in (q, k, v, bias))
  out = np.zeros((*q.shape[:-1], v.shape[-1]))
  batch, q_len, heads, _ = q.shape
  for b, i, h in itertools.product(range(batch), range(q_len), range(heads)):
    scores = [scale * q[b, i, h] @ key + 0 for key in k[b, :, h]]
    weights = np.exp(np.array(scores) + bias[h, i])
    out[b, i, h] = weights @ v[b, :, h] / weights.sum()
  return out


@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_brute_force(scale):
  q, k, v, bias = _inputs()
  out = attention.dot_product_attention(q, k, v, bias=bias, scale=scale)
  expected = _brute_force(q, k, v, bias, 4**-0.5 if scale is None else scale)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_equals_jax_nn():
  q, k, v, bias = _inputs(v_dim=4)
  expected = jax.nn.dot_product_attention(q, k, v, bias=bias[None])
  out = attention.dot_product_attention(q, k, v, bias=bias)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_leading_axes(batch):
  q, k, v, bias = _inputs(batch)
  out = attention.dot_product_attention(q, k, v, bias=bias)
  flat = [x.reshape(-1, *x.shape[-3:]) for x in (q, k, v)]
  expected = attention.dot_product_attention(*flat, bias=bias)
  np.testing.assert_allclose(out, expected.reshape(out.shape), atol=1e-6)


@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
def test_gradients_equal_finite_differences(name):
  inputs = dict(zip(("q", "k", "v", "bias"), _inputs(), strict=True))

  def loss(x):
    q, k, v, bias = (inputs | {name: x}).values()
    return jnp.sum(jnp.sin(attention.dot_product_attention(q, k, v, bias=bias)))

  def exact_loss(x):
    q, k, v, bias = (inputs | {name: x}).values()
    return np.sum(np.sin(_brute_force(q, k, v, bias, 4**-0.5)))

  x = inputs[name]
  slope = np.vdot(jax.jit(jax.grad(loss))(x), x)
  # In float64, where the difference of two losses has digits left.
  x = np.asarray(x, np.float64)
  step = 1e-5 * x
  measured = (exact_loss(x + step) - exact_loss(x - step)) / 2e-5
  np.testing.assert_allclose(slope, measured, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_computed_in_float32():
  inputs = _inputs(q_len=63, kv_len=65, dim=33)
  q, k, v, bias = (x.astype(jnp.bfloat16) for x in inputs)
  out = attention.dot_product_attention(q, k, v, bias=bias)
  assert out.dtype == jnp.bfloat16
  same = (x.astype(jnp.float32) for x in (q, k, v))
  exact = attention.dot_product_attention(*same, bias=bias)
  # Weights and result are rounded to 8 bits once each.
  np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=1e-2)
  weights = attention.attention_weights(q, k, bias=bias)
  assert weights.dtype == jnp.float32
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_bfloat16_gradients():
  inputs = _inputs(q_len=63, kv_len=65, dim=33)

  def loss(inputs):
    q, k, v, bias = inputs
    out = attention.dot_product_attention(q, k, v, bias=bias)
    return jnp.sum(jnp.sin(out.astype(jnp.float32)))

  rounded = [x.astype(jnp.bfloat16) for x in inputs]
  gradient = jax.jit(jax.grad(loss))
  exact = gradient([x.astype(jnp.float32) for x in rounded])
  for value, expected in zip(gradient(rounded), exact, strict=True):
    assert value.dtype == jnp.bfloat16
    error = jnp.abs(value.astype(jnp.float32) - expected).max()
    assert error < 0.03 * jnp.abs(expected).max()


def test_large_scores_do_not_overflow():
  q, k, v, bias = _inputs()
  out = attention.dot_product_attention(1e4 * q, 1e4 * k, v, bias=bias)
  assert jnp.isfinite(out).all()


COVER = slot_kinds.cover()
# Lengths of queries and keys.
LENGTHS = [(12, 12), (7, 1), (5, 13), (1, 9)]


@pytest.mark.parametrize("number", range(len(COVER)), ids=map(str, COVER))
def test_every_pair_of_slots_equals_the_formula(number):
  """Values, and each gradient along a direction by float64 differences."""
  q_len, kv_len = LENGTHS[number % len(LENGTHS) if number % 2 else 0]
  drawn = slots.draw_slots(number, COVER[number], q_len=q_len, kv_len=kv_len)
  exact = {k: np.asarray(x, np.float64) for k, x in drawn.arrays.items()}
  expected = drawn.reference(exact)
  out_bar = np.cos(np.arange(expected.out.size)).reshape(expected.out.shape)

  def attend(arrays):
    q, k, v = (arrays[name] for name in "qkv")
    result = attention.dot_product_attention(
      q,
      k,
      v,
      return_weights=True,
      return_log_sum_exp=expected.log_sum_exp is not None,
      **drawn.kwargs(arrays),
    )
    return result.out, result

  @jax.jit
  def run(arrays, out_bar):
    _, pull, got = jax.vjp(attend, arrays, has_aux=True)
    return got, pull(out_bar)[0]

  got, gradients = run(drawn.arrays, jnp.asarray(out_bar, jnp.float32))
  for name, have, want in zip(got._fields, got, expected, strict=True):
    assert (have is None) == (want is None), name
    if want is not None:
      np.testing.assert_allclose(have, want, rtol=1e-4, atol=2e-5, err_msg=name)
  rng = np.random.default_rng(number)
  for name, x in exact.items():
    step = 1e-6 * rng.standard_normal(x.shape)
    high, low = (
      np.vdot(drawn.reference(exact | {name: x + sign * step}).out, out_bar)
      for sign in (1, -1)
    )
    slope = np.vdot(gradients[name], step) / 1e-6
    np.testing.assert_allclose(
      slope, (high - low) / 2e-6, rtol=1e-3, atol=1e-3, err_msg=name
    )


@pytest.mark.parametrize(
  ("heads", "k_heads", "v_heads"),
  [(8, 1, 4), (8, 2, 4), (8, 8, 2), (6, 3, 1)],
)
def test_heads_of_keys_and_values_are_grouped(heads, k_heads, v_heads):
  """DiffQKV (arXiv 2501.13629): equal to heads that are repeated."""
  rng = np.random.default_rng(heads + k_heads)
  q, k, v = (
    jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for shape in ((2, 5, heads, 4), (2, 7, k_heads, 4), (2, 7, v_heads, 6))
  )
  got, *gradients = _with_gradients(q, k, v)
  repeated = [jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v)]
  expected, *exact = _with_gradients(q, *repeated)
  np.testing.assert_allclose(got, expected, atol=1e-6)
  for name, a, b in zip("qkv", gradients, exact, strict=True):
    few = a.shape[2]
    b = b.reshape(*b.shape[:2], few, -1, b.shape[-1]).sum(axis=3)
    np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


def _with_gradients(q, k, v, function=None, **kwargs):
  """Returns the output and the gradients of q, k, v and the bias, if any."""
  function = attention.dot_product_attention if function is None else function
  arrays = {"q": q, "k": k, "v": v}
  if "bias" in kwargs:
    arrays["bias"] = kwargs.pop("bias")

  def loss(arrays):
    arrays = dict(arrays)
    q, k, v = (arrays.pop(name) for name in "qkv")
    out = function(q, k, v, **arrays, **kwargs)
    return jnp.sum(jnp.sin(out)), out

  gradients, out = jax.jit(jax.grad(loss, has_aux=True))(arrays)
  return out, *(gradients[name] for name in arrays)


def _peer_inputs():
  rng = np.random.default_rng(0)
  shapes = ((2, 9, 4, 8), (2, 11, 2, 8), (2, 11, 2, 8), (1, 4, 9, 11))
  q, k, v, bias = (
    jnp.asarray(rng.standard_normal(x), jnp.float32) for x in shapes
  )
  visible = rng.random((2, 1, 9, 11)) < 0.7
  visible[..., 0] = True
  return q, k, v, bias, visible


def _assert_same(got, expected):
  names = ("out", "q", "k", "v", "bias")
  for name, a, b in zip(names, got, expected, strict=False):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5, err_msg=name)
  assert len(got) == len(expected)


def test_jax_nn_with_bias_mask_and_grouped_heads():
  q, k, v, bias, visible = _peer_inputs()
  visible = jnp.asarray(visible)
  got = _with_gradients(q, k, v, bias=bias, mask=masks.dense(visible))
  expected = _with_gradients(
    q, k, v, jax.nn.dot_product_attention, bias=bias, mask=visible
  )
  _assert_same(got, expected)


def test_jax_nn_causal_and_local():
  q, k, v, _, _ = _peer_inputs()
  peer = jax.nn.dot_product_attention
  _assert_same(
    _with_gradients(q, k, v, mask=masks.causal(), scale=0.7),
    _with_gradients(q, k, v, peer, is_causal=True, scale=0.7),
  )
  _assert_same(
    _with_gradients(q, k, v, mask=masks.sliding_window(3, 2)),
    _with_gradients(q, k, v, peer, local_window_size=(3, 2)),
  )


@pytest.mark.parity
@pytest.mark.parametrize("case", ["bias", "mask", "causal"])
def test_pytorch(case):
  torch = parity_helper.import_torch()
  q, k, v, bias, visible = _peer_inputs()
  ours, theirs = {
    "bias": ({"bias": bias}, {}),
    "mask": (
      {"mask": masks.dense(jnp.asarray(visible))},
      {"attn_mask": torch.from_numpy(visible)},
    ),
    "causal": ({"mask": masks.causal()}, {"is_causal": True}),
  }[case]
  arrays = [_leaf(torch, x.swapaxes(1, 2)) for x in (q, k, v)]
  if case == "bias":
    arrays.append(_leaf(torch, bias))
    theirs["attn_mask"] = arrays[-1]
  out = torch.nn.functional.scaled_dot_product_attention(
    *arrays[:3], enable_gqa=True, **theirs
  )
  out.sin().sum().backward()
  expected = [
    x.detach().numpy().swapaxes(1, 2)
    for x in (out, *(x.grad for x in arrays[:3]))
  ]
  expected += [x.grad.numpy() for x in arrays[3:]]
  _assert_same(_with_gradients(q, k, v, **ours), expected)


def _leaf(torch, x):
  return torch.tensor(np.asarray(x)).requires_grad_()


@pytest.mark.parity
def test_flex_attention():
  """Values: FlexAttention has no gradients on a processor."""
  torch = parity_helper.import_torch()
  q, k, v, _, _ = _peer_inputs()
  slopes = scores.alibi_slopes(4)
  theirs = torch.tensor(np.asarray(slopes))

  def change(score, batch, head, q_index, k_index):
    score = 3 * torch.tanh(score / 3) + theirs[head] * (k_index - q_index)
    return score + 0.1 * batch * k_index

  def ours(score, batch, head, q_index, k_index, slope):
    score = 3 * jnp.tanh(score / 3) + slope * (k_index - q_index)
    return score + 0.1 * batch * k_index

  def seen(batch, head, q_index, k_index):
    return (k_index <= q_index + 1) | (k_index % 3 == head % 3)

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.nn.attention import flex_attention as flex

    with torch.inference_mode():
      expected, lse = flex.flex_attention(
        *(torch.tensor(np.asarray(x.swapaxes(1, 2))) for x in (q, k, v)),
        score_mod=change,
        block_mask=flex.create_block_mask(seen, 2, 4, 9, 11, device="cpu"),
        enable_gqa=True,
        return_lse=True,
      )
  got = attention.dot_product_attention(
    q,
    k,
    v,
    score_mods=scores.function(ours, {"h": slopes}),
    mask=masks.function(seen),
    return_log_sum_exp=True,
  )
  np.testing.assert_allclose(
    got.out, expected.numpy().swapaxes(1, 2), atol=1e-5
  )
  np.testing.assert_allclose(got.log_sum_exp, lse.numpy(), atol=1e-5)


def test_log_sum_exp_and_weights():
  q, k, v, bias = _inputs((2, 3))
  got = attention.dot_product_attention(
    q, k, v, bias=bias, return_log_sum_exp=True, return_weights=True
  )
  logits = jnp.einsum("...ihd,...jhd->...hij", q, k) / 2 + bias[None, None]
  np.testing.assert_allclose(
    got.log_sum_exp, jax.nn.logsumexp(logits, axis=-1), atol=1e-5
  )
  np.testing.assert_allclose(got.weights, jax.nn.softmax(logits), atol=1e-6)
  assert got.log_sum_exp.dtype == got.weights.dtype == jnp.float32
  again = attention.apply_attention_weights(got.weights, v)
  np.testing.assert_allclose(again, got.out, atol=1e-6)
  plain = attention.dot_product_attention(q, k, v, bias=bias)
  np.testing.assert_array_equal(got.out, plain)


def test_log_sum_exp_merges_parts_of_the_keys():
  """Two softmaxes over parts of the keys are one over all of them."""
  q, k, v, _ = _inputs()
  whole = attention.dot_product_attention(q, k, v)
  parts = [
    attention.dot_product_attention(
      q, k[:, part], v[:, part], return_log_sum_exp=True
    )
    for part in (slice(3), slice(3, None))
  ]
  share = jax.nn.softmax(jnp.stack([x.log_sum_exp for x in parts]), axis=0)
  share = share.swapaxes(-1, -2)[..., None]
  merged = share[0] * parts[0].out + share[1] * parts[1].out
  np.testing.assert_allclose(merged, whole, atol=1e-6)


def test_log_sum_exp_of_nothing():
  q, k, v, _ = _inputs()
  got = attention.dot_product_attention(
    q, k, v, mask=masks.causal(-2), return_log_sum_exp=True
  )
  assert (np.asarray(got.log_sum_exp)[..., :2] == -np.inf).all()
  assert np.isfinite(got.log_sum_exp[..., 2:]).all()


@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_nan_in_padding_reaches_nobody(implementation):
  """Keys that no query sees and queries that see no key, in shared heads."""
  q, k, v, _ = _inputs((2,), 8, 8, 2, 4, 4)
  k, v, bar = k[:, :, :1], v[:, :, :1], jnp.cos(q)
  lengths, rows = jnp.array([0, 5]), jnp.array([[0, 0, 0, 1, 1, 1, 1, 9]] * 2)
  mask = masks.padding(lengths) & masks.segments(rows, rows.at[:, 7].set(8))

  @jax.jit
  def run(arrays):
    out, pull = jax.vjp(
      lambda arrays: attention.dot_product_attention(
        *arrays, mask=mask, implementation=implementation
      ),
      arrays,
    )
    return out, *pull(bar)[0]

  hidden = (jnp.arange(8)[None] >= lengths[:, None])[..., None, None]
  alone = hidden.at[1].set(jnp.arange(8)[:, None, None] == 7)
  spoilt = [
    jnp.where(padding, jnp.nan, x)
    for x, padding in ((q, alone), (k, hidden), (v, hidden))
  ]
  for got, expected in zip(run(spoilt), run([q, k, v]), strict=True):
    np.testing.assert_array_equal(got, expected)
    assert np.isfinite(got).all()
    assert not got[0].any()
    assert got[1].any()


def test_bias_with_leading_axes():
  """The bias has some of several leading axes, of size one or not."""
  q, k, *_ = _inputs((2, 3))
  rng = np.random.default_rng(1)
  logits = np.einsum("...ihd,...jhd->...hij", q, k) / 2
  for shape in (
    (3, 3, 5, 7),
    (2, 1, 1, 5, 7),
    (2, 3, 3, 1, 7),
    (1, 1, 1, 5, 1),
  ):
    bias = rng.standard_normal(shape).astype(np.float32)
    got = attention.attention_weights(q, k, bias=jnp.asarray(bias))
    np.testing.assert_allclose(
      got, jax.nn.softmax(logits + bias), atol=1e-6, err_msg=str(shape)
    )


@pytest.mark.usefixtures("unchecked")
def test_errors_name_argument_and_value():
  q, k, v, bias = _inputs()
  with pytest.raises(ValueError, match=r"k has shape \(2, 7, 3, 3\).*4\]"):
    attention.dot_product_attention(q, k[..., :3], v)
  with pytest.raises(ValueError, match=r"v has shape \(2, 6, 3, 6\)"):
    attention.dot_product_attention(q, k, v[:, :6])
  with pytest.raises(ValueError, match=r"bias has shape .*\(2, 3, 5, 7\)"):
    attention.dot_product_attention(q, k, v, bias=bias[:2])
  with pytest.raises(ValueError, match="q has shape"):
    attention.dot_product_attention(q[0, 0], k, v)
  with pytest.raises(ValueError, match=r"k has .* k_heads that divides 3"):
    attention.dot_product_attention(q, k[:, :, :2], v)
  with pytest.raises(ValueError, match=r"v has .* v_heads that divides 3"):
    attention.dot_product_attention(q, k, v[:, :, :2])
  with pytest.raises(ValueError, match=r"v has shape .*; weights of shape"):
    attention.apply_attention_weights(bias, v)


def test_annotations_are_checked():
  q, k, v, _ = _inputs()
  with pytest.raises(jaxtyping.TypeCheckError):
    attention.dot_product_attention(q, k[..., :3], v)
