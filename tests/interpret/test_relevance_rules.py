"""Rules of relevance: golden numbers, conservation, a restatement in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import relevance_rules as rules

# The network of the golden numbers: dense, ReLU, dense to one output.
_X = np.array([[1.0, 2.0, 0.5]], np.float32)
_FIRST = np.array([[1.0, -1.0], [0.5, 1.0], [-2.0, 0.4]], np.float32)
_BIAS = np.array([0.3, -0.2], np.float32)
_LAST = np.array([[2.0], [-1.0]], np.float32)

_GOLDEN = (
  (rules.zero, rules.zero, (3.0, 0.0, -2.2)),
  (rules.z_plus, rules.zero, (1.230769, 1.230769, -1.230769)),
  (
    rules.z_plus,
    functools.partial(rules.epsilon, epsilon=0.25),
    (1.032258, 1.032258, -1.032258),
  ),
  (rules.z_plus, rules.z_plus, (0.8, 0.8, 0.0)),
  (rules.z_plus, rules.alpha_beta, (1.6, 1.6, -1.6)),
  (
    rules.zero,
    functools.partial(rules.alpha_beta, alpha=1.0, beta=0.0),
    (1.3, 0.390909, -0.090909),
  ),
)


def _golden(last, first):
  z = jnp.asarray(_X @ _FIRST + _BIAS)
  np.testing.assert_allclose(z, [[1.3, 1.0]], rtol=1e-6)
  y = z @ _LAST
  np.testing.assert_allclose(y, [[1.6]], rtol=1e-6)
  middle = last(jnp.matmul, z, jnp.asarray(_LAST), None, y)
  return first(
    jnp.matmul, jnp.asarray(_X), jnp.asarray(_FIRST), jnp.asarray(_BIAS), middle
  )


@pytest.mark.parametrize(("last", "first", "expected"), _GOLDEN)
def test_golden_numbers(last, first, expected):
  np.testing.assert_allclose(_golden(last, first)[0], expected, atol=2e-6)


def test_what_the_bias_takes():
  deficit = 1.6 - _golden(rules.zero, rules.zero).sum()
  assert deficit == pytest.approx(0.8, abs=1e-5)
  deficit = 1.6 - _golden(rules.z_plus, rules.zero).sum()
  assert deficit == pytest.approx(0.369231, abs=1e-5)


def _random(seed, *shapes):
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def _convolve(x, weight):
  return jax.lax.conv_general_dilated(
    x, weight, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _layer(seed, of_images):
  if of_images:
    x, weight = _random(seed, (2, 5, 7, 3), (3, 3, 3, 6))
    product = _convolve
  else:
    x, weight = _random(seed, (3, 11), (11, 7))
    product = jnp.matmul
  return product, x, weight


@pytest.mark.parametrize("of_images", [False, True])
@pytest.mark.parametrize(
  ("rule", "signed"),
  [
    (rules.z_plus, False),
    (rules.alpha_beta, True),
    (functools.partial(rules.alpha_beta, alpha=1.0, beta=0.0), True),
    (functools.partial(rules.z_box, low=-3.0, high=4.0), True),
    (rules.zero, True),
  ],
)
def test_conservation(rule, signed, of_images):
  product, x, weight = _layer(1, of_images)
  x = jnp.clip(x, -3.0, 4.0) if signed else jnp.abs(x)
  z = product(x, weight)
  (relevance,) = _random(2, z.shape)
  # Away from 0, where shares of LRP-0 are too large for float32.
  relevance = jnp.where(jnp.abs(z) > 0.1, relevance, 0.0)
  found = rule(product, x, weight, None, relevance)
  axes = tuple(range(1, x.ndim))
  scale = jnp.abs(found).sum(axes)
  deficit = (found.sum(axes) - relevance.sum(axes)) / scale
  np.testing.assert_allclose(deficit, 0.0, atol=1e-5)


def test_one_sign_gets_everything():
  # All products are positive, so that none can take -beta.
  x, weight = jnp.ones((1, 3)), jnp.ones((3, 2))
  relevance = jnp.array([[3.0, -6.0]])
  found = rules.alpha_beta(jnp.matmul, x, weight, None, relevance)
  np.testing.assert_allclose(found, [[-1.0, -1.0, -1.0]], rtol=1e-6)
  found = rules.alpha_beta(jnp.matmul, x, -weight, None, relevance)
  np.testing.assert_allclose(found, [[-1.0, -1.0, -1.0]], rtol=1e-6)


def test_alpha_beta_is_a_double_loop():
  x, weight, relevance = _random(3, (1, 5), (5, 4), (1, 4))
  products = np.asarray(x)[0, :, None] * np.asarray(weight)
  plus, minus = np.maximum(products, 0), np.minimum(products, 0)
  assert (plus.sum(0) > 0).all()
  assert (minus.sum(0) < 0).all()
  expected = [
    sum(
      float(relevance[0, k])
      * (
        3 * plus[i, k] / plus[:, k].sum() - 2 * minus[i, k] / minus[:, k].sum()
      )
      for k in range(4)
    )
    for i in range(5)
  ]
  found = rules.alpha_beta(
    jnp.matmul, x, weight, None, relevance, alpha=3.0, beta=2.0
  )
  np.testing.assert_allclose(found[0], expected, rtol=2e-5, atol=1e-5)


def test_pixels_are_shared_out_within_their_box():
  x, weight, relevance = _random(4, (2, 6), (6, 3), (2, 3))
  low = np.array([[-2.0] * 3 + [-1.0] * 3], np.float32)
  high = np.array([[2.0] * 5 + [3.0]], np.float32)
  x = np.clip(np.asarray(x), low, high)
  w, r = np.asarray(weight), np.asarray(relevance)
  terms = (
    x[..., None] * w
    - low[..., None] * np.maximum(w, 0)
    - high[..., None] * np.minimum(w, 0)
  )
  assert (terms >= 0).all()
  expected = (terms / terms.sum(1, keepdims=True) * r[:, None]).sum(-1)
  found = rules.z_box(
    jnp.matmul, jnp.asarray(x), weight, None, relevance, low=low, high=high
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_equal_to_the_repository_in_numpy():
  """Dense by V = max(W, 0), convolution by its output, both with 1e-9."""
  rng = np.random.default_rng(5)
  x = rng.normal(size=(1, 4, 5, 2))
  kernel, bias = rng.normal(size=(3, 3, 2, 3)), rng.normal(size=3)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  y = np.zeros((1, 4, 5, 3))
  for i, j in np.ndindex(4, 5):
    window = padded[0, i : i + 3, j : j + 3]
    y[0, i, j] = np.tensordot(window, kernel, 3) + bias
  a = np.maximum(y, 0).reshape(1, -1)
  weight = rng.normal(size=(60, 4))
  start = rng.normal(size=(1, 4))
  v = np.maximum(weight, 0)
  of_dense = a * ((start / (a @ v + 1e-9)) @ v.T)
  quotient = of_dense.reshape(y.shape) / (y + 1e-9)
  back = np.zeros_like(padded)
  for i, j in np.ndindex(4, 5):
    back[0, i : i + 3, j : j + 3] += kernel @ quotient[0, i, j]
  expected = x * back[:, 1:-1, 1:-1]

  def convolve(x, weight):
    return jax.lax.conv_general_dilated(
      x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  found = rules.z_plus(
    jnp.matmul, jnp.asarray(a), jnp.asarray(weight), None, jnp.asarray(start)
  )
  np.testing.assert_allclose(found, of_dense, rtol=1e-4, atol=1e-6)
  found = rules.zero(
    convolve,
    jnp.asarray(x),
    jnp.asarray(kernel),
    jnp.asarray(bias),
    found.reshape(y.shape),
  )
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)


def test_an_output_of_zero_gives_nothing_back():
  x, weight = jnp.array([[1.0, 1.0]]), jnp.array([[1.0, 2.0], [-1.0, 1.0]])
  relevance = jnp.array([[5.0, 3.0]])
  found = rules.zero(jnp.matmul, x, weight, None, relevance)
  np.testing.assert_allclose(found, [[2.0, 1.0]], rtol=1e-6)


def test_overlapping_windows_accumulate():
  v = jnp.array([1.0, 2.0, 5.0, 0.0, 3.0])
  relevance = jnp.array([0.6, 0.4])

  def pool(v):
    return jnp.stack([v[0:3].max(), v[2:5].max()])

  found = rules.routed(pool, v, relevance)
  np.testing.assert_allclose(found, [0, 0, 1.0, 0, 0], atol=1e-7)


def test_shares_of_a_sum_and_of_a_mean():
  parts = (jnp.array([[1.0, 4.0]]), jnp.array([[3.0, -2.0]]))
  relevance = jnp.array([[8.0, 1.0]])
  for_first, for_second = rules.shared(parts, relevance)
  np.testing.assert_allclose(for_first, [[2.0, 2.0]])
  np.testing.assert_allclose(for_second, [[6.0, -1.0]])
  x = jnp.array([[1.0, 2.0, 5.0]])
  mean = functools.partial(jnp.mean, axis=1)
  found = rules.local(mean, x, jnp.array([4.0]))
  np.testing.assert_allclose(found, [[0.5, 1.0, 2.5]])


def test_softmax_and_products_as_published():
  """AttnLRP's propositions 3.1 and 3.3, restated as sums over indices."""
  scores, r = (np.asarray(a) for a in _random(6, (2, 5), (2, 5)))
  s = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  expected = [
    [scores[b, i] * (r[b, i] - s[b, i] * r[b].sum()) for i in range(5)]
    for b in range(2)
  ]
  args = [jnp.asarray(a) for a in (scores, s, r)]
  np.testing.assert_allclose(rules.softmax(*args), expected, rtol=1e-5)
  a, b, r = (np.asarray(a) for a in _random(7, (4, 3), (3, 5), (4, 5)))
  o = a @ b
  of_a = np.einsum("ji,ip,jp->ji", a, b, r / (2 * o))
  of_b = np.einsum("ji,ip,jp->ip", a, b, r / (2 * o))
  found = rules.matrix_product(jnp.matmul, *(jnp.asarray(e) for e in (a, b, r)))
  np.testing.assert_allclose(found[0], of_a, rtol=1e-4)
  np.testing.assert_allclose(found[1], of_b, rtol=1e-4)
  total = sum(e.sum() for e in found)
  assert total == pytest.approx(float(r.sum()), abs=1e-4)


def test_hidden_keys_get_nothing():
  scores = jnp.array([[1.0, -jnp.inf, 2.0]])
  weights = jax.nn.softmax(scores)
  found = rules.softmax(scores, weights, jnp.array([[0.3, 0.0, -0.2]]))
  assert np.isfinite(found).all()
  assert found[0, 1] == 0


def test_attention_shares():
  q, k, v, r = _random(8, *[(2, 5, 3, 4)] * 4)
  of_q, of_k, of_v = rules.attention(q, k, v, r)
  # The values keep half; queries and keys get alike.
  assert of_v.sum() == pytest.approx(float(r.sum()) / 2, abs=1e-3)
  assert of_q.sum() == pytest.approx(float(of_k.sum()), abs=1e-3)
  assert jnp.abs(of_q).max() > 0.01
  of_q, of_k, of_v = rules.attention_constant_weights(q, k, v, r)
  assert not of_q.any()
  assert not of_k.any()
  assert of_v.sum() == pytest.approx(float(r.sum()), abs=1e-3)


@pytest.mark.parametrize(
  "rule", [rules.zero, rules.z_plus, rules.alpha_beta, rules.epsilon]
)
def test_bfloat16_is_computed_in_float32(rule):
  x, weight, bias = _random(9, (3, 8), (8, 5), (5,))
  x, weight, bias = (a.astype(jnp.bfloat16) for a in (x, weight, bias))
  relevance = jnp.ones((3, 5), jnp.bfloat16)
  found = rule(jnp.matmul, x, weight, bias, relevance)
  assert found.dtype == jnp.float32
  wide = [a.astype(jnp.float32) for a in (x, weight, bias, relevance)]
  np.testing.assert_allclose(found, rule(jnp.matmul, *wide), rtol=1e-6)


@pytest.mark.parametrize("rule", [rules.epsilon, rules.alpha_beta])
def test_relevance_has_a_gradient(rule):
  x, weight, relevance, away = _random(10, (2, 6), (6, 4), (2, 4), (2, 6))

  def total(x):
    found = rule(jnp.matmul, x, weight, None, relevance)
    return (found**2).sum()

  gradient = jax.grad(total)(x)
  assert np.isfinite(gradient).all()
  rise = (total(x + 1e-3 * away) - total(x - 1e-3 * away)) / 2e-3
  assert rise == pytest.approx(float((gradient * away).sum()), rel=2e-2)


def test_alpha_and_beta_must_fit():
  args = jnp.matmul, jnp.ones((1, 2)), jnp.ones((2, 2)), None, jnp.ones((1, 2))
  with pytest.raises(ValueError, match=r"alpha is 2\.0 and beta is 0\.5"):
    rules.alpha_beta(*args, alpha=2.0, beta=0.5)
