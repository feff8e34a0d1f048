import numpy as np
import pytest

from input_pipeline import resizing

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)


def apply(transform, image=IMAGE, seed=0):
  return transform(image, np.random.default_rng(seed))


def test_resize_to_half_is_the_mean_of_blocks():
  # Pillow's box-like filters widen; a linear ramp stays one under any of them.
  ramp = np.broadcast_to(
    np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (24, 24, 1)
  )
  half = apply(resizing.resize(12, "bilinear"), np.ascontiguousarray(ramp))
  expected = ramp.reshape(12, 2, 12, 2, 1).mean(axis=(1, 3))
  assert np.abs(half[:, 1:-1] - expected[:, 1:-1]).max() <= 1


def test_center_crop_keeps_the_middle():
  cropped = apply(resizing.center_crop(0.5))
  np.testing.assert_array_equal(cropped, IMAGE[6:18, 12:24])


def test_random_resized_crop_respects_area_and_ratio():
  image = np.zeros((100, 200, 1), np.uint8)
  rng = np.random.default_rng(0)
  shares, ratios = [], []
  for _ in range(500):
    left, top, right, bottom = resizing.sample_box(
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
  box = resizing.sample_box(
    image.shape, (0.9, 1.0), (1.0, 1.0), np.random.default_rng(0)
  )
  assert box == (495, 0, 505, 10)


def test_crop_of_everything_is_a_resize():
  crop = resizing.random_resized_crop(12, area=(1.0, 1.0), ratio=(1.5, 1.5))
  np.testing.assert_array_equal(apply(crop), apply(resizing.resize(12)))


@pytest.mark.parametrize(
  ("operation", "options", "message"),
  [
    (resizing.resize, dict(size=0), "size is 0"),
    (resizing.resize, dict(size=8.0), "size is 8.0"),
    (resizing.resize, dict(size=8, method="cubic"), "bilinear"),
    (resizing.center_crop, dict(ratio=1.5), "ratio is 1.5"),
    (resizing.resize_center_crop, dict(size=8, ratio=0), "ratio is 0"),
    (resizing.random_resized_crop, dict(size=8, area=(0, 1)), "area is"),
    (resizing.random_resized_crop, dict(size=8, area=(0.5, 2)), "area is"),
    (resizing.random_resized_crop, dict(size=8, ratio=(2, 1)), "ratio is"),
  ],
)
def test_faults(operation, options, message):
  with pytest.raises(ValueError, match=message):
    operation(**options)
