import math

import numpy as np
import pytest

from input_pipeline.images import geometry, resizing

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


def apply(transform, image=IMAGE, seed=0):
  return transform(image, np.random.default_rng(seed))


def test_shift_moves_pixels_without_changing_them():
  offsets = set()
  for seed in range(100):
    shifted = apply(geometry.shift(2), seed=seed).astype(int)
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
    offsets |= {
      (y, x)
      for y in range(5)
      for x in range(5)
      if np.array_equal(shifted, padded[y : y + 24, x : x + 36])
    }
  assert len(offsets) == 25


def test_affine_without_randomness_is_a_resize():
  for image in (IMAGE, IMAGE[:8, :8]):
    warped = apply(geometry.affine(48), image).astype(int)
    resized = apply(resizing.resize(48, "bilinear"), image)
    assert np.abs(warped - resized).max() <= 1


def blob_at(row, column, size=33):
  """A bright square of 3 pixels around a position."""
  image = np.zeros((size, size, 1), np.uint8)
  image[row - 1 : row + 2, column - 1 : column + 2] = 255
  return image


def get_centre(image):
  """Centre of mass: row, column."""
  weights = image[..., 0].astype(float)
  rows, columns = np.indices(weights.shape)
  total = weights.sum()
  return np.array([(weights * rows).sum(), (weights * columns).sum()]) / total


def test_affine_rotates_around_the_centre():
  angles = []
  for seed in range(50):
    warped = apply(geometry.affine(33, rotate=30), blob_at(16, 26), seed)
    row, column = get_centre(warped) - 16
    assert np.hypot(row, column) == pytest.approx(10, abs=0.3)
    angles.append(np.degrees(np.arctan2(row, column)))
  assert -30.5 < min(angles) < -25
  assert 25 < max(angles) < 30.5


def test_affine_moves_by_a_share_of_the_side():
  moves = np.array(
    [
      get_centre(apply(geometry.affine(33, shift=0.2), blob_at(16, 16), seed))
      for seed in range(50)
    ]
  )
  assert np.abs(moves - 16).max() <= 0.2 * 33 + 0.2
  assert (moves - 16).max(axis=0).min() > 5
  assert (moves - 16).min(axis=0).max() < -5


def test_affine_zooms_about_the_centre():
  distances = [
    get_centre(apply(geometry.affine(33, zoom=0.2), blob_at(16, 26), seed))[1]
    - 16
    for seed in range(50)
  ]
  assert 7.8 < min(distances) < 8.5
  assert 11.5 < max(distances) < 12.2


def test_flip_mirrors_half_of_the_time():
  flipped = [
    np.array_equal(apply(geometry.flip(), seed=seed), IMAGE[:, ::-1])
    for seed in range(200)
  ]
  assert np.mean(flipped) == pytest.approx(0.5, abs=0.12)
  np.testing.assert_array_equal(apply(geometry.flip(0.0)), IMAGE)


@pytest.mark.parametrize(
  ("operation", "options", "message"),
  [
    (geometry.shift, dict(pixels=-1), "pixels is -1"),
    (geometry.shift, dict(pixels=1.5), "pixels is 1.5"),
    (geometry.affine, dict(size=8, rotate=-1), "rotate is -1"),
    (geometry.affine, dict(size=8, rotate=math.inf), "rotate is inf"),
    (geometry.affine, dict(size=8, shift=-1), "shift is -1, but must be a num"),
    (geometry.affine, dict(size=8, zoom=-0.1), "zoom is -0.1"),
    (geometry.affine, dict(size=8, zoom=1.0), "less than 1"),
    (geometry.affine, dict(size=8, method="cubic"), "bilinear"),
    (geometry.flip, dict(probability=2), "probability is 2"),
  ],
)
def test_faults(operation, options, message):
  with pytest.raises(ValueError, match=message):
    operation(**options)


def test_turn_is_by_one_angle_or_not_at_all():
  image = blob_at(16, 26)
  for degrees in (90, -90, 45):
    turned = apply(geometry.turn(degrees), image)
    assert turned.shape == image.shape
    angle = math.radians(degrees)
    wanted = 16 - 10 * math.sin(angle), 16 + 10 * math.cos(angle)
    np.testing.assert_allclose(get_centre(turned), wanted, atol=0.3)
  # Nothing is drawn but whether: the same picture whatever the seed.
  seen = {
    apply(geometry.turn(45, probability=0.5), image, seed).tobytes()
    for seed in range(40)
  }
  assert seen == {image.tobytes(), turned.tobytes()}
  corner = apply(geometry.turn(45), np.full((8, 8, 1), 200, np.uint8))
  assert corner[0, 0, 0] == 0
  with pytest.raises(ValueError, match="method is 'cubic'"):
    geometry.turn(method="cubic")
