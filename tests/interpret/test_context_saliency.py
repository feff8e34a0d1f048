"""Context-aware saliency: golden numbers, its symmetries, a restatement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import context_saliency

_ONE = (context_saliency.Scale(1.0, 3, (1.0,)),)
_GOLDEN = {"nearest": 8, "step": 1}


def _square(extra=False):
  image = np.zeros((1, 8, 8, 1), np.float32)
  image[0, 3:5, 3:5] = 1
  if extra:
    image[0, 0, 7] = 1
  return jnp.asarray(image)


def test_golden_numbers():
  found = context_saliency.saliency(_square(), _ONE, **_GOLDEN)[0]
  # All that is not 0 is a focus here, and no distance counts.
  assert found[3, 3] == pytest.approx(0.978828, abs=2e-6)
  assert found[2, 3] == pytest.approx(0.917411, abs=2e-6)
  assert found[2, 2] == pytest.approx(0.814093, abs=2e-6)
  assert found[0, 0] == 0
  assert (found >= 0.8 * found.max()).sum() == 16
  found = context_saliency.saliency(_square(extra=True), _ONE, **_GOLDEN)[0]
  # A lone pixel is not removed.
  assert found[0, 7] == pytest.approx(0.878726, abs=2e-6)
  assert found[0, 7] >= 0.8 * found.max()


def test_a_loop_over_pixels():
  rng = np.random.default_rng(0)
  image = 0.1 * rng.uniform(size=(5, 7, 2))
  image[1:3, 2:4] += 0.3
  found = context_saliency.saliency(
    jnp.asarray(image[None], jnp.float32), _ONE, nearest=6, step=2, focus=0.9
  )[0]
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
  patches = {(i, j): padded[i : i + 3, j : j + 3] for i, j in np.ndindex(5, 7)}
  raw = np.zeros((5, 7))
  for (i, j), patch in patches.items():
    apart = sorted(
      np.sqrt(((patch - other) ** 2).sum())
      / (1 + 3 * np.hypot(i - row, j - column) / 7)
      for (row, column), other in patches.items()
      if row % 2 == 0 and column % 2 == 0 and (row, column) != (i, j)
    )
    raw[i, j] = 1 - np.exp(-np.mean(apart[:6]) * 49 / 9)
  foci = np.argwhere(raw >= 0.9 * raw.max())
  assert 1 < len(foci) < 35
  expected = np.zeros((5, 7))
  for i, j in np.ndindex(5, 7):
    nearest = min(np.hypot(i - row, j - column) for row, column in foci)
    expected[i, j] = raw[i, j] * (1 - nearest / np.hypot(5, 7))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_constant_maps_are_not_salient():
  maps = jnp.stack([jnp.zeros((9, 12, 3)), jnp.full((9, 12, 3), 0.7)])
  np.testing.assert_array_equal(context_saliency.saliency(maps), 0.0)
  np.testing.assert_array_equal(context_saliency.salient_relevance(-maps), 0.0)


def _shape_at(row, column):
  shape = np.array([[0.2, 0.9, 0.4], [1.0, 0.3, 0.8]])
  image = np.zeros((1, 20, 20, 1), np.float32)
  image[0, row : row + 2, column : column + 3, 0] = shape
  return jnp.asarray(image)


@pytest.mark.parametrize(
  ("position_weight", "tolerance"), [(0.0, 1e-6), (3.0, 0.12)]
)
def test_saliency_moves_with_what_is_seen(position_weight, tolerance):
  """Exactly without the term of positions, about so with it."""

  @jax.jit
  def saliency(maps):
    return context_saliency.saliency(
      maps,
      (context_saliency.Scale(1.0, 5, (1.0,)),),
      position_weight=position_weight,
      step=1,
    )

  both = jnp.concatenate([_shape_at(8, 8), _shape_at(11, 6)])
  here, there = saliency(both)
  here, there = here[5:13, 5:14], there[8:16, 3:12]
  assert here.max() > 0.3
  np.testing.assert_allclose(here, there, atol=tolerance)
  if position_weight:
    assert jnp.abs(here - there).max() > 1e-3


def test_scales_and_the_sign():
  relevance = jax.random.normal(jax.random.key(0), (2, 16, 13, 3))
  salient_relevance = jax.jit(context_saliency.salient_relevance)
  found = salient_relevance(relevance)
  assert found.shape == (2, 16, 13)
  assert (found >= 0).all()
  assert found.max() <= 1
  np.testing.assert_allclose(
    salient_relevance(-3 * relevance), found, atol=1e-5
  )
  # All scales count.
  fewer = context_saliency.salient_relevance(
    relevance, context_saliency.SCALES[:3]
  )
  assert jnp.abs(fewer - found).max() > 1e-3
  for scale in context_saliency.SCALES:
    sizes = (scale.size, scale.size / 2, scale.size / 4)
    expected = tuple(size for size in sizes if size >= 0.2)
    np.testing.assert_allclose(scale.neighbours, expected)


def test_gradient():
  maps = jax.random.uniform(jax.random.key(1), (1, 6, 6, 1))
  away = jax.random.normal(jax.random.key(2), maps.shape)

  @jax.jit
  def total(maps):
    # All are foci and all count: a pixel that becomes a focus makes a step, and
    # a patch that comes among the nearest a corner.
    found = context_saliency.saliency(
      maps, _ONE, nearest=35, step=1, focus=1e-3
    )
    return (found**2).sum()

  gradient = jax.jit(jax.grad(total))(maps)
  rise = (total(maps + 1e-3 * away) - total(maps - 1e-3 * away)) / 2e-3
  assert rise == pytest.approx(float((gradient * away).sum()), rel=1e-2)
  # Also where patches are equal, and their distance has a corner.
  assert np.isfinite(jax.grad(total)(_square()[:, :6, :6])).all()


def test_bfloat16():
  maps = jax.random.uniform(jax.random.key(3), (1, 8, 9, 2)).astype("bfloat16")
  found = context_saliency.saliency(maps, _ONE)
  assert found.dtype == jnp.float32
  wide = context_saliency.saliency(maps.astype(jnp.float32), _ONE)
  np.testing.assert_array_equal(found, wide)


def test_errors():
  maps = jnp.zeros((1, 8, 8, 1))
  with pytest.raises(ValueError, match=r"maps have shape \(8, 8\)"):
    context_saliency.saliency(maps[0, ..., 0])
  with pytest.raises(ValueError, match="they must be larger"):
    context_saliency.saliency(maps[:, :3, :3])
  with pytest.raises(ValueError, match="nearest is 0; it must be at least 1"):
    context_saliency.saliency(maps, nearest=0)
  with pytest.raises(ValueError, match="patch must be odd"):
    context_saliency.saliency(maps, [context_saliency.Scale(1.0, 4, (1.0,))])
  with pytest.raises(ValueError, match="neighbours must include its size"):
    context_saliency.saliency(maps, [context_saliency.Scale(1.0, 3, (0.5,))])
  with pytest.raises(ValueError, match="scales is empty"):
    context_saliency.saliency(maps, ())
