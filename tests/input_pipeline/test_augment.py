import numpy as np
import pytest

from input_pipeline import augment

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (24, 36, 3), dtype=np.uint8)


def apply(transform, image=IMAGE, seed=0):
  return transform(image, np.random.default_rng(seed))


def test_every_operation_keeps_type_and_channels():
  for name, operation in augment.OPERATIONS.items():
    needs_size = name in ("affine", "random_resized_crop", "resize")
    transform = operation(size=8) if needs_size else operation()
    for image in (IMAGE, IMAGE[..., :1]):
      result = apply(transform, image)
      assert result.dtype == np.uint8, name
      assert result.ndim == 3, name
      assert result.shape[2] == image.shape[2], name


def test_resize_to_half_is_the_mean_of_blocks():
  # Pillow's box-like filters widen; a linear ramp stays one under any of them.
  ramp = np.broadcast_to(
    np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (24, 24, 1)
  )
  half = apply(augment.resize(12, "bilinear"), np.ascontiguousarray(ramp))
  expected = ramp.reshape(12, 2, 12, 2, 1).mean(axis=(1, 3))
  assert np.abs(half[:, 1:-1] - expected[:, 1:-1]).max() <= 1


def test_center_crop_keeps_the_middle():
  cropped = apply(augment.center_crop(0.5))
  np.testing.assert_array_equal(cropped, IMAGE[6:18, 12:24])


def test_random_resized_crop_respects_area_and_ratio():
  image = np.zeros((100, 200, 1), np.uint8)
  rng = np.random.default_rng(0)
  shares, ratios = [], []
  for _ in range(500):
    left, top, right, bottom = augment._sample_box(
      image.shape, (0.2, 0.5), (0.8, 1.25), rng
    )
    assert 0 <= left < right <= 200
    assert 0 <= top < bottom <= 100
    shares.append((right - left) * (bottom - top) / 20000)
    ratios.append((right - left) / (bottom - top))
  assert 0.19 < min(shares) < 0.22
  assert 0.47 < max(shares) < 0.51
  assert 0.78 < min(ratios) < 0.83
  assert 1.2 < max(ratios) < 1.28


def test_random_resized_crop_of_a_strip_takes_its_centre():
  image = np.zeros((10, 1000, 1), np.uint8)
  box = augment._sample_box(
    image.shape, (0.9, 1.0), (1.0, 1.0), np.random.default_rng(0)
  )
  assert box == (495, 0, 505, 10)


def test_crop_of_everything_is_a_resize():
  crop = augment.random_resized_crop(12, area=(1.0, 1.0), ratio=(1.5, 1.5))
  np.testing.assert_array_equal(apply(crop), apply(augment.resize(12)))


def test_shift_moves_pixels_without_changing_them():
  offsets = set()
  for seed in range(100):
    shifted = apply(augment.shift(2), seed=seed).astype(int)
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
    warped = apply(augment.affine(48), image).astype(int)
    resized = apply(augment.resize(48, "bilinear"), image)
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
    warped = apply(augment.affine(33, rotate=30), blob_at(16, 26), seed)
    row, column = get_centre(warped) - 16
    assert np.hypot(row, column) == pytest.approx(10, abs=0.3)
    angles.append(np.degrees(np.arctan2(row, column)))
  assert -30.5 < min(angles) < -25
  assert 25 < max(angles) < 30.5


def test_affine_moves_by_a_share_of_the_side():
  moves = np.array(
    [
      get_centre(apply(augment.affine(33, shift=0.2), blob_at(16, 16), seed))
      for seed in range(50)
    ]
  )
  assert np.abs(moves - 16).max() <= 0.2 * 33 + 0.2
  assert (moves - 16).max(axis=0).min() > 5
  assert (moves - 16).min(axis=0).max() < -5


def test_affine_zooms_about_the_centre():
  distances = [
    get_centre(apply(augment.affine(33, zoom=0.2), blob_at(16, 26), seed))[1]
    - 16
    for seed in range(50)
  ]
  assert 7.8 < min(distances) < 8.5
  assert 11.5 < max(distances) < 12.2


def test_flip_mirrors_half_of_the_time():
  flipped = [
    np.array_equal(apply(augment.flip(), seed=seed), IMAGE[:, ::-1])
    for seed in range(200)
  ]
  assert np.mean(flipped) == pytest.approx(0.5, abs=0.12)
  np.testing.assert_array_equal(apply(augment.flip(0.0)), IMAGE)


@pytest.mark.parametrize(
  ("operation", "options", "message"),
  [
    (augment.resize, dict(size=0), "size is 0"),
    (augment.resize, dict(size=8.0), "size is 8.0"),
    (augment.resize, dict(size=8, method="cubic"), "bilinear"),
    (augment.center_crop, dict(ratio=1.5), "ratio is 1.5"),
    (augment.random_resized_crop, dict(size=8, area=(0, 1)), "area is"),
    (augment.random_resized_crop, dict(size=8, area=(0.5, 2)), "area is"),
    (augment.random_resized_crop, dict(size=8, ratio=(2, 1)), "ratio is"),
    (augment.shift, dict(pixels=-1), "pixels is -1"),
    (augment.affine, dict(size=8, rotate=-1), "rotate=-1"),
    (augment.affine, dict(size=8, zoom=1.0), "less than 1"),
    (augment.flip, dict(probability=2), "probability is 2"),
  ],
)
def test_faults(operation, options, message):
  with pytest.raises(ValueError, match=message):
    operation(**options)
