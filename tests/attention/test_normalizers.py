"""Normalizers against the golden numbers of their papers, and at extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, normalizers, scales

rng = np.random.default_rng(0)
weights = jax.jit(attention.attention_weights)
attend = jax.jit(attention.dot_product_attention)


def normal(*shape):
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def golden_softplus(normalizer):
  """The example of the fact sheet: L = 6, d = 4, causal, unit norm."""
  x = 1 + 4.0 * np.arange(6)[:, None] + np.arange(4)[None, :]
  q, k = (
    f(x) / np.linalg.norm(f(x), axis=-1)[:, None] for f in (np.sin, np.cos)
  )
  q, k = (jnp.asarray(x[None, :, None], jnp.float32) for x in (q, k))
  scale = scales.log_length(jnp.arange(1, 7), 4)
  return weights(q, k, scale=scale, mask=masks.causal(), normalizer=normalizer)[
    0, 0
  ]


def assert_rows(got, rows):
  for row, expected in rows.items():
    padded = expected + [0] * (got.shape[1] - len(expected))
    # Six digits are printed.
    np.testing.assert_allclose(got[row - 1], padded, atol=1.5e-6)


def test_softplus_golden_numbers():
  got = golden_softplus(normalizers.softplus())
  assert_rows(
    got,
    {
      1: [1.0],
      3: [0.660495, 0.122871, 0.216634],
      6: [0.381327, 0.084274, 0.027130, 0.407083, 0.023093, 0.077093],
    },
  )
  np.testing.assert_allclose(got.sum(axis=-1), 1, atol=1e-6)


def test_reweighted_softplus_golden_numbers():
  got = golden_softplus(normalizers.reweighted_softplus(3.0))
  assert_rows(
    got,
    {
      1: [1.0],
      2: [0.168879, 0.831121],
      3: [0.959950, 0.006180, 0.033870],
      5: [0, 0, 0.999811, 0, 0.000189],
      6: [0.415825, 0, 0, 0.584175, 0, 0],
    },
  )
  got = golden_softplus(normalizers.reweighted_softplus(15.0))
  assert_rows(got, {6: [0.154506, 0, 0, 0.845494, 0, 0]})
  # Sparse zeros are exact.
  assert (np.asarray(got[5])[[1, 2, 4, 5]] == 0).all()


def test_reweighting_without_a_threshold_is_softplus():
  plain = golden_softplus(normalizers.softplus())
  got = golden_softplus(normalizers.reweighted_softplus(1.0, free_rows=6))
  np.testing.assert_allclose(got, plain, atol=1e-6)


def test_rows_that_see_few_keys_are_free():
  """By the keys that are seen, not by the position: packed sequences."""
  q, k = normal(1, 8, 1, 4), normal(1, 8, 1, 4)
  packed = masks.causal() & masks.segments(jnp.array([[0] * 3 + [1] * 5]))
  options = {"normalizer": normalizers.reweighted_softplus(3.0)}
  got = weights(q, k, mask=packed, **options)[0, 0]
  alone = weights(q[:, 3:], k[:, 3:], mask=masks.causal(), **options)[0, 0]
  np.testing.assert_allclose(got[3:, 3:], alone, atol=1e-6)


def golden_affine(length):
  s = np.sin(np.arange(4)[:, None] + 2 * np.arange(4)[None, :])
  x = jnp.ones((1, 4, 1, 1))
  gates = jnp.array([-10.0, 0, 2, 10])
  alpha = jnp.clip(0.1 * gates + 0.5, 0, 1)[None, :, None]
  return weights(
    0 * x,
    x,
    bias=jnp.asarray(s, jnp.float32),
    mask=masks.causal(),
    normalizer=normalizers.affine(alpha, jnp.array([0.6]), length),
  )[0, 0]


def test_affine_golden_numbers():
  got = golden_affine(None)
  np.testing.assert_allclose(got.sum(axis=-1), 0.6, atol=1e-6)
  assert_rows(got, {4: [0.131523, -0.022936, 0.287822, 0.203590]})
  got = golden_affine(4)
  np.testing.assert_allclose(got.sum(-1), [0.15, 0.55, 0.625, 0.6], atol=1e-6)
  # The sheet counts this row from zero.
  assert_rows(got, {2: [0.359133, 0.190867]})
  # Nothing leaks to masked keys.
  assert (np.triu(got, 1) == 0).all()


def test_affine_one_is_softmax():
  q, k, v = normal(2, 5, 3, 4), normal(2, 6, 3, 4), normal(2, 6, 3, 7)
  one = normalizers.affine(jnp.ones((2, 5, 3)), jnp.ones(3))
  np.testing.assert_array_equal(
    attend(q, k, v, normalizer=one), attend(q, k, v)
  )


def test_affine_is_softmax_plus_a_sum_of_values():
  q, k, v = normal(2, 5, 3, 4), normal(2, 5, 3, 4), normal(2, 5, 3, 7)
  alpha, mean = normal(2, 5, 3), normal(3)
  mask = masks.causal()
  got = attend(
    q, k, v, mask=mask, normalizer=normalizers.affine(alpha, mean, 9)
  )
  plain = attend(q, k, v, mask=mask)
  beta = (mean[None, None] - alpha) / 9
  sums = jnp.cumsum(v, axis=1)
  expected = alpha[..., None] * plain + beta[..., None] * sums
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_sink_is_one_more_key_without_value():
  q, k, v = normal(2, 5, 3, 4), normal(2, 6, 3, 4), normal(2, 6, 3, 7)
  sink = normal(3)
  logits = jnp.einsum("bihd,bjhd->bhij", q, k) / 2
  column = jnp.broadcast_to(sink[None, :, None, None], (2, 3, 5, 1))
  longer = jnp.concatenate([logits, column], axis=-1)
  got = attention.dot_product_attention(
    q,
    k,
    v,
    normalizer=normalizers.softmax_with_sink(sink),
    return_weights=True,
    return_log_sum_exp=True,
  )
  expected = jax.nn.softmax(longer)[..., :-1]
  np.testing.assert_allclose(got.weights, expected, atol=1e-6)
  np.testing.assert_allclose(
    got.log_sum_exp, jax.nn.logsumexp(longer, axis=-1), atol=1e-5
  )
  np.testing.assert_allclose(
    got.out, jnp.einsum("bhij,bjhd->bihd", expected, v), atol=1e-5
  )


def test_off_by_one():
  q, k = normal(1, 5, 2, 4), normal(1, 6, 2, 4)
  got = weights(q, k, normalizer=normalizers.softmax_with_sink(jnp.zeros(2)))
  e = np.exp(np.einsum("bihd,bjhd->bhij", q, k) / 2)
  np.testing.assert_allclose(got, e / (1 + e.sum(-1, keepdims=True)), atol=1e-6)


def test_no_sink_and_all_sink():
  q, k = normal(1, 5, 2, 4), normal(1, 6, 2, 4)
  for sink, expected in ((-jnp.inf, weights(q, k)), (1e4, 0.0)):
    normalizer = normalizers.softmax_with_sink(jnp.full(2, sink))
    got = weights(q, k, normalizer=normalizer)
    np.testing.assert_allclose(
      got, np.broadcast_to(expected, got.shape), atol=1e-7
    )


def test_sigmoid():
  q, k = normal(1, 5, 2, 4), normal(1, 6, 2, 4)
  bias = -jnp.log(jnp.arange(1, 6, dtype=jnp.float32))[:, None]
  got = weights(
    q, k, bias=bias, mask=masks.causal(), normalizer=normalizers.sigmoid()
  )
  s = np.einsum("bihd,bjhd->bhij", q, k) / 2 + np.asarray(bias)
  expected = np.where(np.tri(5, 6), 1 / (1 + np.exp(-s)), 0)
  np.testing.assert_allclose(got, expected, atol=1e-6)


HEADS = 2
EVERY = {
  "softmax": lambda n: normalizers.softmax(),
  "sink": lambda n: normalizers.softmax_with_sink(jnp.array([0.5, -1.0])),
  "softplus": lambda n: normalizers.softplus(),
  "reweighted 3": lambda n: normalizers.reweighted_softplus(3.0),
  "reweighted 15": lambda n: normalizers.reweighted_softplus(15.0),
  "sigmoid": lambda n: normalizers.sigmoid(),
  "affine": lambda n: normalizers.affine(
    jnp.full((1, n, HEADS), 0.3), jnp.array([0.4, 0.9])
  ),
}
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


@jax.jit
def with_gradients(arrays, mask):
  """Returns the output and the gradient of each array, by name."""

  def loss(arrays):
    a = dict(arrays)
    q, k, v = (a.pop(name) for name in "qkv")
    out = attention.dot_product_attention(q, k, v, mask=mask, **a)
    return jnp.sum(jnp.sin(out)), out

  return jax.grad(loss, has_aux=True, allow_int=True)(arrays)[::-1]


def assert_finite(tree):
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    assert np.isfinite(x).all(), path


@every
def test_queries_that_see_nothing(make):
  """They get zeros, and give nothing to any gradient, whatever they hold."""
  arrays = {name: normal(1, 6, HEADS, 3) for name in "qkv"}
  arrays["q"] = arrays["q"].at[:, :2].set(jnp.nan)
  arrays["k"] = arrays["k"].at[:, 4:].set(jnp.inf)
  arrays["v"] = arrays["v"].at[:, 4:].set(jnp.nan)
  arrays |= {
    "bias": normal(HEADS, 6, 6),
    "scale": normal(HEADS, 6),
    "normalizer": make(6),
  }
  # Queries 0 and 1 see nothing, and nobody sees keys 4 and 5.
  out, gradients = with_gradients(arrays, masks.causal(-2))
  assert_finite(gradients)
  assert (np.asarray(out[:, :2]) == 0).all()
  for name, hidden in (
    ("q", np.s_[:, :2]),
    ("k", np.s_[:, 4:]),
    ("v", np.s_[:, 4:]),
    ("bias", np.s_[:, :2]),
    ("scale", np.s_[:, :2]),
  ):
    assert (np.asarray(gradients[name])[hidden] == 0).all(), name
    assert (np.asarray(gradients[name]) != 0).any(), name
  if "affine" in str(make(6)).lower():
    alpha = np.asarray(gradients["normalizer"].alpha)
    assert (alpha[:, :2] == 0).all()
    # Query 2 sees one key, with a weight of alpha_mean whatever alpha is.
    assert (alpha[:, 3:] != 0).all()


def test_no_keys():
  """An empty context gives zeros and no gradient, as PyTorch has it."""
  q, none = normal(1, 3, HEADS, 4), jnp.ones((1, 0, HEADS, 4))

  @jax.jit
  def run(q):
    def attend(q):
      return [
        attention.dot_product_attention(
          q,
          none,
          none,
          normalizer=make(3),
          bias=jnp.ones((HEADS, 1, 1))[..., :0],
          mask=masks.padding(jnp.array([0])) & masks.causal(),
          return_log_sum_exp=name in ("softmax", "sink"),
        )
        for name, make in EVERY.items()
      ]

    results, pull = jax.vjp(attend, q)
    return results, pull(jax.tree.map(jnp.ones_like, results))[0]

  results, gradient = run(q)
  for result in results:
    out = getattr(result, "out", result)
    assert out.shape == q.shape
    assert not np.any(out)
  assert not np.any(gradient)
  assert (np.asarray(results[0].log_sum_exp) == -np.inf).all()
  np.testing.assert_allclose(results[1].log_sum_exp[0, :, 0], [0.5, -1.0])
  for implementation in ("tpu_interpret", "gpu_interpret"):
    with pytest.raises(ValueError, match="kv_len is 0"):
      attention.dot_product_attention(
        q, none, none, implementation=implementation
      )


def test_a_shut_sink_beside_no_keys_in_kernels():
  """What kernels add to a softmax that is done equals the reference."""
  lse = jnp.log(jnp.array([[0.0, 3.0], [0.0, 3.0], [0.0, 3.0]]))[None]
  out = jnp.array([0.0, 2.0])[None, :, None, None] * jnp.ones((1, 2, 3, 1))
  sink = jnp.array([-jnp.inf, 0.0, 90.0])

  def sunk(out, lse, sink):
    attend = lambda: (out, lse)
    return normalizers.softmax_with_sink(sink).fused(attend, None)

  (got, total), pull = jax.vjp(sunk, out, lse, sink)
  np.testing.assert_allclose(got[0, :, :, 0], [[0, 0, 0], [2, 1.5, 0]])
  expected = [[-np.inf, np.log(3)], [0, np.log(4)], [90, 90]]
  np.testing.assert_allclose(total[0], expected, rtol=1e-6)
  out_bar, lse_bar, sink_bar = pull((jnp.ones_like(got), jnp.ones_like(total)))
  assert_finite((out_bar, lse_bar, sink_bar))
  # One key of weight 3 / 4, value 2, and a sink of 1 / 4: with w = 3 / 4, the
  # output 2 w and ln 4 change by -2 w (1 - w) + (1 - w); the empty row by 1.
  np.testing.assert_allclose(
    sink_bar, [0.0, 1 + 0.25 - 2 * 0.75 * 0.25, 2.0], rtol=1e-5
  )


@every
def test_bias_of_minus_infinity(make):
  """It hides as a mask does, and a row of it is a row that sees nothing."""
  arrays = {name: normal(1, 6, HEADS, 3) for name in "qkv"}
  arrays |= {
    "bias": jnp.where(jnp.tri(6, k=-1) > 0, 0.5, -jnp.inf),
    "normalizer": make(6),
  }
  out, gradients = with_gradients(arrays, None)
  assert np.isfinite(out).all()
  del gradients["bias"]
  assert_finite(gradients)
  if "softmax" in str(make(6)).lower():
    np.testing.assert_array_equal(out[:, 0], 0)


@every
def test_one_dominating_key_among_8192(make):
  """1024^15 and 8192^15 are beyond float32."""
  n = 8192
  q, k = np.zeros((1, 2, HEADS, 64)), np.zeros((1, n, HEADS, 64))
  q[..., 0], k[:, 5, :, 0] = 1.0, 1.0
  # Some other keys are a little seen.
  k[:, 7:20, :, 0] = 0.9
  arrays = {"q": q, "k": k, "v": rng.standard_normal((1, n, HEADS, 2))}
  arrays = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
  arrays["normalizer"] = make(2)
  arrays["scale"] = scales.log_length(jnp.full((1, 1, 2), n), 64)
  out, gradients = with_gradients(arrays, None)
  assert_finite((out, gradients))


@every
def test_large_scores(make):
  arrays = {name: 1e4 * normal(1, 6, HEADS, 3) for name in "qkv"}
  arrays["normalizer"] = make(6)
  assert_finite(with_gradients(arrays, masks.causal()))


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3, 1e-1])
@pytest.mark.parametrize("power", [3.0, 15.0])
def test_nearly_uniform_rows(power, spread):
  """What is left above the average is tiny, and its power is nothing."""
  arrays = {
    name: jnp.ones((1, 9, HEADS, 4)) + spread * normal(1, 9, HEADS, 4)
    for name in "qk"
  }
  arrays |= {
    "v": normal(1, 9, HEADS, 3),
    "normalizer": normalizers.reweighted_softplus(power),
  }
  out, gradients = with_gradients(arrays, masks.causal())
  assert_finite((out, gradients))
  q, k = (np.asarray(arrays[x], np.float64) for x in "qk")
  s = np.logaddexp(np.einsum("bihd,bjhd->bhij", q, k) / 2, 0) * np.tri(9)
  count = np.arange(1, 10)[:, None]
  a = s / (s.sum(axis=-1, keepdims=True) + 1e-8)
  b = np.maximum(count * a - (count > 3), 0) ** power
  b /= b.sum(axis=-1, keepdims=True) + 1e-8
  expected = np.einsum("bhij,bjhd->bihd", b, arrays["v"])
  # Of a small spread float32 has few digits left above the average.
  rows = slice(None) if spread in (0.0, 1e-1) else slice(3)
  np.testing.assert_allclose(out[:, rows], expected[:, rows], atol=2e-4)


def test_errors_name_argument_and_value():
  with pytest.raises(ValueError, match=r"power is 0.5; it must be at least 1"):
    normalizers.reweighted_softplus(0.5)
  x = normal(1, 6, 2, 4)
  for normalizer, error in (
    (
      normalizers.softmax_with_sink(normal(3)),
      r"sink of the normalizer has shape \(3,\); it must be \[2\]",
    ),
    (
      normalizers.affine(normal(1, 5, 2), normal(2)),
      r"alpha of the normalizer has shape \(1, 5, 2\); .* \[1, 6, 2\]",
    ),
    (
      normalizers.Affine(normal(1, 6, 2), normal(3), None),
      r"alpha_mean of the normalizer has shape \(3,\)",
    ),
  ):
    with pytest.raises(ValueError, match=error):
      attention.dot_product_attention(x, x, x, normalizer=normalizer)


@pytest.mark.parametrize(
  "normalizer",
  [normalizers.softplus(), normalizers.sigmoid()],
)
def test_no_log_sum_exp(normalizer):
  x = normal(1, 3, 2, 4)
  with pytest.raises(ValueError, match="return_log_sum_exp is True, but"):
    attention.dot_product_attention(
      x, x, x, normalizer=normalizer, return_log_sum_exp=True
    )


def test_log_softplus_is_what_it_says():
  """What kernels take instead of softplus."""
  s = np.concatenate([np.linspace(-30, 30, 301), [-1e4, -80, 80, 1e4]])
  mod = normalizers.LogSoftplus()
  x = jnp.asarray(s, jnp.float32)[None]
  got = mod.modify(x, None)
  # Below -40 softplus is exp to all of float64.
  tail = s < -40
  softplus = np.logaddexp(0, np.where(tail, 0, s))
  exact = np.where(tail, s, np.log(softplus))
  np.testing.assert_allclose(got[0], exact, rtol=3e-6, atol=3e-6)
  gradient = jax.vmap(jax.grad(lambda x: mod.modify(x, None)))(x[0])
  slope = np.where(tail, 1, 1 / (1 + np.exp(-np.where(tail, 0, s))) / softplus)
  np.testing.assert_allclose(gradient, slope, rtol=1e-5)
