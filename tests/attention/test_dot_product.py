"""Against brute force in numpy, against jax.nn, and at odd sizes."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import attention


@pytest.fixture
def unchecked():
  """Turns off the checks of annotations, to meet the function's own errors."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


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
  slope = np.vdot(jax.grad(loss)(x), x)
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
  exact = jax.grad(loss)([x.astype(jnp.float32) for x in rounded])
  for value, expected in zip(jax.grad(loss)(rounded), exact, strict=True):
    assert value.dtype == jnp.bfloat16
    error = jnp.abs(value.astype(jnp.float32) - expected).max()
    assert error < 0.03 * jnp.abs(expected).max()


def test_large_scores_do_not_overflow():
  q, k, v, bias = _inputs()
  out = attention.dot_product_attention(1e4 * q, 1e4 * k, v, bias=bias)
  assert jnp.isfinite(out).all()


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


def test_annotations_are_checked():
  q, k, v, _ = _inputs()
  with pytest.raises(jaxtyping.TypeCheckError):
    attention.dot_product_attention(q, k[..., :3], v)
