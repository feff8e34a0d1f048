"""Sinks of an image give to its other tokens: golden rows, a loop, traps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import attention_redistribution as redistribution

ROW = np.array([0.30, 0.05, 0.10, 0.20, 0.08, 0.02, 0.15, 0.10])
IMAGE = np.isin(np.arange(8), [2, 3, 4, 5])[None]
SINKS = np.isin(np.arange(8), [0, 3])[None]
BATCH, HEADS, QUERIES, KEYS = 3, 5, 4, 9


def _row(dtype=jnp.float32):
  return jnp.asarray(ROW, dtype)[None, None, None]


def _moved(**options):
  return np.asarray(
    redistribution.redistribute(_row(), IMAGE, SINKS, **options)[0, 0, 0]
  )


def _random(seed=0):
  """Weights, image keys, sinks and text queries, of which some are nothing."""
  rng = np.random.default_rng(seed)
  weights = rng.dirichlet(np.full(KEYS, 0.4), (BATCH, HEADS, QUERIES))
  image = rng.random((BATCH, KEYS)) < 0.6
  sinks = rng.random((BATCH, KEYS)) < 0.3
  # A row of which all image tokens are sinks, and one without any sink.
  sinks[1] = image[1]
  sinks[2] = False
  queries = rng.random((BATCH, QUERIES)) < 0.7
  return weights.astype(np.float32), image, sinks, queries


def test_the_published_rule_on_a_row():
  """Image mass 0.40, of which 0.5 is on no sink: kept at 0.5, not at 0.8."""
  kept = redistribution.image_centric(_row(), IMAGE, SINKS, least_ratio=0.5)
  dropped = redistribution.image_centric(_row(), IMAGE, SINKS, least_ratio=0.8)
  assert kept.all()
  assert not dropped.any()
  found = redistribution.masses(_row(), IMAGE, SINKS)
  for mass, expected in zip(found, (0.2, 0.3, 0.2, 0.3), strict=True):
    np.testing.assert_allclose(mass, [[[expected]]], atol=1e-7)
  moved = _moved(moved=0.6, least_ratio=0.5)
  expected = [0.12, 0.05, 0.25, 0.08, 0.20, 0.05, 0.15, 0.10]
  np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-7)
  np.testing.assert_allclose(moved[IMAGE[0]].sum(), 0.58, atol=1e-7)
  np.testing.assert_array_equal(_moved(least_ratio=0.8), np.float32(ROW))


def test_the_released_constants_mean_something_else():
  options = redistribution.from_released(p=0.6, rho=0.5)
  moved = _moved(**options)
  expected = [0.18, 0.05, 0.20, 0.12, 0.16, 0.04, 0.15, 0.10]
  np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-7)
  np.testing.assert_allclose(moved[IMAGE[0]].sum(), 0.52, atol=1e-7)
  # A bound of 0.2 on the part of sinks is one of 0.8 on that of the others.
  strict = redistribution.from_released(p=0.6, rho=0.2)
  np.testing.assert_array_equal(_moved(**strict), np.float32(ROW))


def test_phi_and_its_bound():
  state = np.ones((1, 1, 4096), np.float32)
  state[..., 1415], state[..., 2533] = 30, -40
  dimensions = redistribution.PUBLISHED_DIMENSIONS["llama_2_7b"]
  phi = redistribution.activation_ratio(state, dimensions)
  np.testing.assert_allclose(phi, [[31.525755]], rtol=1e-6)
  assert redistribution.sink_mask(state, dimensions, 20.0).all()
  other = redistribution.PUBLISHED_DIMENSIONS["qwen2_vl_7b"]
  assert not redistribution.sink_mask(state, other, 20.0).any()
  one_hot = jnp.eye(7)
  phi = redistribution.activation_ratio(one_hot, range(7))
  np.testing.assert_allclose(phi, np.full(7, 7**0.5), rtol=1e-6)
  nothing = redistribution.activation_ratio(jnp.zeros((2, 7)), (3,))
  np.testing.assert_array_equal(nothing, np.zeros(2))


def test_thresholds_of_narrow_models():
  scaled = [
    redistribution.scaled_threshold(width) for width in (4096, 256, 128)
  ]
  np.testing.assert_allclose(scaled, [20.0, 5.0, 3.5355339], rtol=1e-7)
  states = jnp.ones((1, 3, 128))
  with pytest.raises(ValueError, match=r"threshold is 20.*11\.31.*is 3\.536"):
    redistribution.sink_mask(states, (1,), 20.0)
  with pytest.raises(ValueError, match=r"dimensions is \(128,\).*0 to 127"):
    redistribution.sink_mask(states, (128,), 2.0)


def test_channels_that_are_large_in_sinks_are_found():
  rng = np.random.default_rng(0)
  states = rng.standard_normal((3, 4, 20))
  states[..., 6] -= 40
  states[..., 13] += 12
  # Of one layer alone, which a median does not see.
  states[0, :, 2] = 1e4
  assert redistribution.find_dimensions(states) == (6, 13)
  # Scaled states are the same to it.
  states *= rng.uniform(0.1, 10, (3, 4, 1))
  assert redistribution.find_dimensions(states, 1) == (6,)
  with pytest.raises(ValueError, match=r"count is 21.*20"):
    redistribution.find_dimensions(states, 21)


def _loop(weights, image, sinks, queries, donors, receivers, options):
  """By the equations, a row at a time, in float64."""
  out = weights.astype(np.float64)
  for b, h, i in np.ndindex(weights.shape[:3]):
    row = out[b, h, i].copy()
    keys = range(KEYS)
    kinds = {
      "image": [j for j in keys if image[b, j]],
      "text": [j for j in keys if not image[b, j]],
      "all": keys,
      "both": keys,
    }
    mass = sum(row[j] for j in kinds["image"])
    content = [j for j in kinds["image"] if not sinks[b, j]]
    looks = mass >= 0.2 and sum(row[j] for j in content) / mass >= 0.7
    if not queries[b, i] or not (looks or options.get("every_head")):
      continue
    if options.get("needs_image_sink") and content == kinds["image"]:
      continue
    giving = [j for j in kinds[donors] if sinks[b, j]]
    getting = [j for j in kinds[receivers] if not sinks[b, j]]
    total = sum(row[j] for j in getting)
    if not total:
      continue
    omega = 0.6 * sum(row[j] for j in giving)
    for j in giving:
      out[b, h, i, j] = 0.4 * row[j]
    for j in getting:
      out[b, h, i, j] = row[j] + omega * row[j] / total
  return out


@pytest.mark.parametrize(
  ("donors", "receivers", "options"),
  [
    ("all", "image", {}),
    ("all", "image", {"every_head": True}),
    ("all", "image", {"needs_image_sink": True}),
    ("image", "both", {}),
    ("text", "text", {"every_head": True}),
  ],
)
def test_a_loop_over_rows(donors, receivers, options):
  weights, image, sinks, queries = _random()
  expected = _loop(weights, image, sinks, queries, donors, receivers, options)
  moved = redistribution.redistribute(
    weights,
    image,
    sinks,
    least_ratio=0.7,
    queries=queries,
    donors=donors,
    receivers=receivers,
    **options,
  )
  np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-6)
  changed = np.abs(expected - weights).max(-1) > 1e-4
  assert 3 <= changed.sum() < changed.size


def test_properties():
  weights, image, sinks, _ = _random(1)
  same = lambda **options: np.testing.assert_array_equal(
    redistribution.redistribute(weights, image, sinks, **options), weights
  )
  same(moved=0.0, least_ratio=0.0)
  same(least_ratio=1.01)
  np.testing.assert_array_equal(
    redistribution.redistribute(weights, image, sinks & False, least_ratio=0.0),
    weights,
  )
  moved = redistribution.redistribute(weights, image, sinks, least_ratio=0.0)
  assert (np.asarray(moved) != weights).any()
  np.testing.assert_allclose(moved.sum(-1), weights.sum(-1), atol=1e-6)
  text = np.broadcast_to((~image & ~sinks)[:, None, None], weights.shape)
  np.testing.assert_array_equal(np.asarray(moved)[text], weights[text])
  gets = (image & ~sinks)[:, None, None] & (weights > 1e-3)
  factors = moved / np.maximum(weights, 1e-3)
  least = np.where(gets, factors, np.inf).min(-1)
  most = np.where(gets, factors, -np.inf).max(-1)
  assert (most - least)[gets.any(-1)].max() < 1e-4
  # All image tokens of the second text are sinks: nobody could get anything.
  np.testing.assert_array_equal(moved[1], weights[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients(dtype):
  weights, image, sinks, queries = _random(2)

  def measure(weights, factor):
    moved = redistribution.redistribute(
      weights, image, sinks, least_ratio=0.5, queries=queries
    )
    assert moved.dtype == weights.dtype
    return (moved.astype(jnp.float32) * factor).sum()

  factor = np.random.default_rng(3).standard_normal(weights.shape)
  factor = jnp.asarray(factor, jnp.float32)
  given = jnp.asarray(weights, dtype)
  gradient = jax.jit(jax.grad(measure))(given, factor)
  assert gradient.dtype == dtype
  assert jnp.isfinite(gradient).all()
  # Along a direction, by differences in float64 of the loop.
  along = np.random.default_rng(4).standard_normal(weights.shape) * weights
  step = 1e-4

  def loop(sign):
    moved = _loop64(given.astype(jnp.float32) + sign * step * along)
    return (moved * factor).sum()

  def _loop64(weights):
    return _gather(
      np.asarray(weights, np.float64), image, sinks, queries, given
    )

  expected = (loop(1) - loop(-1)) / (2 * step)
  actual = (np.asarray(gradient, np.float64) * along).sum()
  tolerance = {jnp.float32: 1e-3, jnp.bfloat16: 2e-2}[dtype]
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def _gather(weights, image, sinks, queries, chosen_by):
  """The rule, with rows chosen by other weights: steps do not cross a bound."""
  rows = redistribution.image_centric(chosen_by, image, sinks, least_ratio=0.5)
  rows = np.asarray(rows) & queries[:, None]
  giving, getting = sinks[:, None, None], (image & ~sinks)[:, None, None]
  total = np.where(getting, weights, 0).sum(-1, keepdims=True)
  freed = 0.6 * np.where(giving, weights, 0).sum(-1, keepdims=True)
  with np.errstate(divide="ignore", invalid="ignore"):
    given = weights * (1 + freed / total)
  moved = np.where(giving, 0.4 * weights, np.where(getting, given, weights))
  return np.where(rows[..., None] & (total > 0), moved, weights)


def test_knock_out_leaves_the_rest():
  """Equal to leaving keys out of the sum over values, after softmax."""
  weights, _, sinks, queries = _random(5)
  rng = np.random.default_rng(6)
  values = rng.standard_normal((BATCH, KEYS, HEADS, 2)).astype(np.float32)
  out = redistribution.knock_out(weights, sinks, queries)
  read = np.einsum("bhqk,bkhd->bqhd", out, values)
  for b, i in np.ndindex(BATCH, QUERIES):
    left = ~sinks[b] if queries[b, i] else np.ones(KEYS, bool)
    expected = np.einsum(
      "hk,khd->hd", weights[b, :, i, left].T, values[b, left]
    )
    np.testing.assert_allclose(read[b, i], expected, atol=1e-6)


def test_contribution_of_grouped_heads():
  rng = np.random.default_rng(7)
  weights = rng.standard_normal((2, 6, 3, 5)).astype(np.float32)
  values = rng.standard_normal((2, 5, 2, 4)).astype(np.float32)
  kernel = rng.standard_normal((6, 4, 7)).astype(np.float32)
  size = redistribution.contribution(weights, values, kernel)
  for b, h, i, j in np.ndindex(weights.shape):
    added = weights[b, h, i, j] * values[b, j, h // 3] @ kernel[h]
    np.testing.assert_allclose(
      size[b, h, i, j], np.linalg.norm(added), rtol=1e-4
    )


def test_errors():
  weights, image, sinks, queries = _random()
  call = redistribution.redistribute
  with pytest.raises(ValueError, match=r"moved is 1\.5.*0 to 1"):
    call(weights, image, sinks, moved=1.5)
  with pytest.raises(ValueError, match=r"sinks is bool \(3, 8\).*\(3, 9\)"):
    call(weights, image, sinks[:, 1:])
  with pytest.raises(ValueError, match=r"queries has shape \(3, 9\)"):
    call(weights, image, sinks, queries=image)
  with pytest.raises(ValueError, match="receivers"):
    call(weights, image, sinks, receivers="images")
  assert queries.shape == (3, 4)
