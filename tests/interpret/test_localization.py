"""Scores of maps on maps and models whose scores are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import localization

_BOXES = jnp.array([[1, 2, 3, 5], [0, 0, 4, 1], [2, 3, 3, 4]])


def test_mass_is_a_sum_over_slices():
  maps = jax.random.uniform(jax.random.key(0), (3, 4, 6))
  expected = [
    np.asarray(m)[box[0] : box[2], box[1] : box[3]].sum() / np.asarray(m).sum()
    for m, box in zip(maps, np.asarray(_BOXES), strict=True)
  ]
  found = localization.mass_in_box(maps, _BOXES)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  for value in (0.0, 0.3):
    share = localization.mass_in_box(jnp.full((3, 4, 6), value), _BOXES)
    np.testing.assert_allclose(share, [6 / 24, 4 / 24, 1 / 24], rtol=1e-6)
  slope = jax.grad(lambda m: localization.mass_in_box(m, _BOXES).sum())(maps)
  total = maps.sum((1, 2), keepdims=True)
  within = localization.in_boxes(_BOXES, 4, 6)
  by_hand = (within - found[:, None, None]) / total
  np.testing.assert_allclose(slope, by_hand, rtol=1e-4, atol=1e-6)


def test_pointing():
  maps = jnp.zeros((3, 4, 6)).at[0, 2, 4].set(1.0).at[1, 3, 1].set(1.0)
  maps = maps.at[2, 2, 3].set(0.5).at[2, 3, 5].set(0.5)  # The first counts.
  found = localization.points_into_box(maps, _BOXES)
  np.testing.assert_array_equal(found, [True, False, True])


def test_deletion_of_a_sum_of_pixels():
  images = jnp.arange(12.0).reshape(1, 3, 4, 1).repeat(2, axis=0)
  # Of the second, the smallest go first.
  maps = images[..., 0] * jnp.array([1.0, -1.0])[:, None, None]

  def score(images):
    return images.sum((1, 2, 3))

  curve = jax.jit(
    lambda *args: localization.deletion_curve(score, *args, steps=3)
  )(images, maps)
  expected = [[66, 66], [28, 60], [6, 38], [0, 0]]
  np.testing.assert_allclose(curve, expected)
  area = localization.area_under(curve)
  np.testing.assert_allclose(area, [67 / 3, 131 / 3], rtol=1e-6)
  np.testing.assert_allclose(area, np.trapezoid(expected, axis=0) / 3)
  blanked = localization.deletion_curve(score, images, maps, steps=2, blank=1.0)
  np.testing.assert_allclose(blanked[-1], 12.0)


def test_steps_that_do_not_divide_the_pixels():
  images = jnp.ones((1, 3, 3, 1))
  curve = localization.deletion_curve(
    lambda x: x.sum((1, 2, 3)), images, images[..., 0], steps=4
  )
  np.testing.assert_allclose(curve[:, 0], [9, 6, 4, 2, 0])


def test_errors():
  maps = jnp.ones((1, 4, 4))
  with pytest.raises(ValueError, match=r"boxes have shape \(1, 3\)"):
    localization.mass_in_box(maps, jnp.zeros((1, 3)))
  with pytest.raises(ValueError, match="steps is 0"):
    localization.deletion_curve(sum, maps[..., None], maps, steps=0)
  with pytest.raises(ValueError, match=r"maps \(1, 4\) and"):
    localization.deletion_curve(sum, maps[..., None], maps[:, 0])
