"""Attention over depth against the paper's formulas in NumPy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import depth

EPSILON = 1e-6


def formula(query, sources, scale):
  """Equations 2 to 4, of sources [n, ..., width]."""
  keys = sources / np.sqrt((sources**2).mean(-1, keepdims=True) + EPSILON)
  logits = (keys * scale) @ query
  weights = np.exp(logits - logits.max(0))
  weights /= weights.sum(0)
  return (weights[..., None] * sources).sum(0)


def drawn(n, lead=(2, 3), width=5, queries=1):
  """Random queries, sources of very different sizes, and norm weights."""
  rng = np.random.default_rng(n)
  sizes = 10.0 ** rng.uniform(-2, 2, (n, *(1,) * len(lead), 1))
  return (
    2 * rng.standard_normal((queries, width)),
    sizes * rng.standard_normal((n, *lead, width)),
    rng.uniform(0.3, 2, (queries, width)),
  )


def single(arrays):
  return [jnp.asarray(x, jnp.float32) for x in arrays]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_values_and_gradients_are_the_formula(n):
  query, sources, scale = (
    x[0] if i != 1 else x for i, x in enumerate(drawn(n))
  )
  out = depth.depth_attention(*single((query, sources, scale)))
  expected = formula(query, sources, scale)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
  seen = np.random.default_rng(0).standard_normal(expected.shape)

  def loss(*arrays):
    return (depth.depth_attention(*arrays) * jnp.asarray(seen, "float32")).sum()

  gradients = jax.grad(loss, (0, 1, 2))(*single((query, sources, scale)))
  arrays = (query, sources, scale)
  for number, gradient in enumerate(gradients):
    step = 1e-6 * np.random.default_rng(1).standard_normal(gradient.shape)
    step *= np.abs(arrays[number])
    moved = [
      [x + sign * step if i == number else x for i, x in enumerate(arrays)]
      for sign in (1, -1)
    ]
    up, down = ((formula(*x) * seen).sum() for x in moved)
    slope = (np.asarray(gradient, np.float64) * step).sum()
    assert slope == pytest.approx((up - down) / 2, rel=2e-4, abs=1e-11)


def test_a_list_of_sources_is_their_stack_and_what_is_not_valid_is_not_there():
  query, sources, scale = single(drawn(4))
  expected = depth.depth_attention(query[0], sources[:3], scale[0])
  listed = depth.depth_attention(query[0], list(sources[:3]), scale[0])
  assert jnp.array_equal(listed, expected)

  def masked(query, sources, scale):
    valid = jnp.array([True, True, True, False])
    return depth.depth_attention(query, sources, scale, valid=valid)

  # The gradient of what is empty is zero, and not NaN.
  empty = sources.at[3].set(0)
  np.testing.assert_allclose(masked(query[0], empty, scale[0]), expected, 1e-6)
  loss = lambda sources: masked(query[0], sources, scale[0]).sum()
  gradient = jax.grad(loss)(empty)
  assert not gradient[3].any()
  assert np.isfinite(gradient).all()


def test_a_query_of_zeros_gives_the_mean_and_a_large_one_picks():
  _, sources, scale = single(drawn(6))
  out = depth.depth_attention(jnp.zeros(5), sources, scale[0])
  np.testing.assert_allclose(out, sources.mean(0), rtol=1e-6)
  # The last but one points to where the others do not.
  sources = sources.at[..., 0].set(-jnp.abs(sources[..., 0]))
  sources = sources.at[4].set(jnp.zeros(5).at[0].set(0.25)[None, None])
  query = jnp.zeros(5).at[0].set(1e4)
  out = depth.depth_attention(query, sources, jnp.ones(5))
  assert jnp.array_equal(out, sources[4])


def test_values_are_raw_and_keys_have_no_size():
  query, sources, scale = single(drawn(3))
  weights = depth.depth_weights(query[0], sources, scale[0], epsilon=0.0)
  sizes = jnp.array([3.0, 0.1, 70.0]).reshape(3, 1, 1, 1)
  larger = depth.depth_weights(query[0], sizes * sources, scale[0], epsilon=0.0)
  np.testing.assert_allclose(weights, larger, atol=1e-5)
  out = depth.apply_depth_weights(weights, sizes * sources)
  np.testing.assert_allclose(
    out, (weights[..., None] * sizes * sources).sum(0), rtol=2e-5, atol=1e-5
  )


@pytest.mark.parametrize("n", [1, 2, 9])
def test_two_phases_are_one(n):
  queries, sources, scales = drawn(n + 1, queries=3)
  queries = queries * np.array([1.0, 30.0, 0.0])[:, None]
  queries, sources, scales = single((queries, sources, scales))
  early = depth.early_depth_attention(queries, sources[:n], scales)
  for query, scale, begun in zip(queries, scales, early, strict=True):
    alone = depth.finish_depth_attention(begun, jnp.float32)
    joined = depth.join_depth_attention(begun, query, sources[n], scale)
    for out, there in ((alone, sources[:n]), (joined, sources)):
      expected = depth.depth_attention(query, there, scale)
      tolerance = 1e-6 * float(jnp.abs(expected).max())
      np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance)


def test_bfloat16_is_rounded_at_the_end_only():
  query, sources, scale = single(drawn(8, width=64))
  short = sources.astype(jnp.bfloat16)
  out = depth.depth_attention(query[0], short, scale[0])
  assert out.dtype == jnp.bfloat16
  wide = depth.depth_attention(query[0], short.astype(jnp.float32), scale[0])
  assert jnp.array_equal(out, wide.astype(jnp.bfloat16))
  weights = depth.depth_weights(query[0], short, scale[0])
  assert weights.dtype == jnp.float32


ERRORS = [
  (({"sources": []}), "sources is empty"),
  (({"query": np.zeros(4, np.float32)}), r"query has shape \(4,\).*\(5,\)"),
  (({"norm_weight": np.zeros(5, int)}), "norm_weight is an array of int"),
  (
    ({"valid": np.ones(2, bool)}),
    r"valid is bool of shape \(2,\); it must be bool \(3,\)",
  ),
  (({"valid": np.ones(3, int)}), r"valid is int.*it must be bool \(3,\)"),
  (
    ({"sources": [np.zeros((2, 5), np.float32), np.zeros((1, 5), np.float32)]}),
    r"sources\[1\] is float32 of shape \(1, 5\)",
  ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("arrays", "message"), ERRORS)
def test_errors_name_what_would_fit(arrays, message):
  given = {
    "query": np.zeros(5, np.float32),
    "sources": np.zeros((3, 2, 5), np.float32),
    "norm_weight": np.ones(5, np.float32),
  }
  with pytest.raises(ValueError, match=message):
    depth.depth_attention(**{**given, **arrays})
  with pytest.raises(ValueError, match="for 2 sources; there are 3"):
    depth.apply_depth_weights(np.ones((2, 2)), given["sources"])
