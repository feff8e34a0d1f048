"""What each degradation does to an image, and chains of them."""

import numpy as np
import pytest
from scipy import stats

from input_pipeline import restoration
from input_pipeline.restoration import degradations, patches
from tests.input_pipeline.restoration.conftest import draw

GREY = np.full((64, 48, 3), 120, np.uint8)


def _spoil(spec, pixels, seed=0, scale=1):
  chain = degradations.create(spec, scale)
  place = patches.place_of(pixels.shape[:2])
  return chain(pixels, np.random.default_rng(seed), place)


@pytest.mark.parametrize("spec", ["haze", "jpeg", "noise", "rain"])
def test_what_all_promise(spec):
  pixels = draw(0, 32, 24)
  kept = pixels.copy()
  made = _spoil(spec, pixels)
  assert made.dtype == np.uint8
  assert made.shape == pixels.shape
  np.testing.assert_array_equal(pixels, kept)
  assert (made != pixels).any()
  np.testing.assert_array_equal(made, _spoil(spec, pixels))


def test_noise():
  made = _spoil("noise(sigma=20)", np.full((200, 200, 3), 120, np.uint8))
  # Cast, so that it is as if half a grey level were taken.
  error = made.astype(float) + 0.5 - 120
  assert abs(error.mean()) < 0.2
  # A step of the distribution of bytes is 0.02 high at most.
  assert stats.kstest(error[..., 0].ravel() / 20, "norm").statistic < 0.02
  np.testing.assert_allclose(
    np.corrcoef(error.reshape(-1, 3).T), np.eye(3), atol=0.02
  )
  # Beyond black and white it is cut off and not wrapped around.
  white = _spoil("noise(sigma=20)", np.full((40, 40, 3), 255, np.uint8))
  assert (white == 255).mean() > 0.45
  assert white.min() > 120
  drawn = [
    _spoil("noise(sigma=(5, 50))", GREY, seed).std() for seed in range(40)
  ]
  assert 5 < min(drawn) < 10
  assert 40 < max(drawn) < 51


def test_jpeg():
  # Grey, since colours at half resolution differ at any quality.
  pixels = draw(0, 64, 48)[..., :1].repeat(3, -1)
  errors = [
    np.abs(_spoil(f"jpeg({quality})", pixels).astype(int) - pixels).mean()
    for quality in (5, 40, 95)
  ]
  assert errors[0] > 1.5 * errors[1] > 3 * errors[2] > 0
  both = {_spoil("jpeg((10, 11))", pixels, n).tobytes() for n in range(12)}
  assert both == {_spoil(f"jpeg({q})", pixels).tobytes() for q in (10, 11)}


def test_rain():
  made = _spoil("rain(angle=0, length=(15, 15))", GREY)
  added = made.astype(int) - GREY
  assert added.min() >= 0
  assert (added == added[..., :1]).all()
  assert 0.01 < (added > 0).mean() < 0.5
  assert added.max() <= round(0.6 * 255)
  # One lonely streak is as long as it shall be, and one pixel wide.
  image = np.zeros((41, 41, 3), np.uint8)
  for seed in range(200):
    one = _spoil("rain(amount=0.0006, angle=0, length=15)", image, seed)[..., 0]
    rows, columns = np.nonzero(one)
    if len(rows) and np.ptp(columns) == 0 and 8 < rows.min() < rows.max() < 33:
      assert np.ptp(rows) == 14
      break
  else:
    pytest.fail("no streak stands alone")
  tilted = _spoil("rain(amount=0.0006, angle=90, length=15)", image, 0)
  assert (
    tilted != _spoil("rain(amount=0.0006, angle=0, length=15)", image)
  ).any()


def test_haze():
  pixels = draw(0, 64, 48)
  made = _spoil("haze(beta=(1, 1), light=(0.8, 0.8))", pixels).astype(float)
  # Light moves all towards one grey: t by least squares of each row.
  light = 0.8 * 255
  passed = ((made - light) * (pixels - light)).sum((1, 2)) / np.square(
    pixels - light
  ).sum((1, 2))
  assert np.exp(-1) - 0.01 < passed.min() < passed.max() < 1.01
  assert passed[-8:].mean() > passed[:8].mean() + 0.2
  black = _spoil("haze", np.zeros_like(pixels))
  assert (black == black[..., :1]).all()
  # A patch sees the haze of its place.
  chain = degradations.create("haze", 1)
  rows, columns = slice(20, 40), slice(5, 30)
  place = patches.place_of(pixels.shape[:2], rows, columns)
  part = chain(pixels[rows, columns], np.random.default_rng(3), place)
  np.testing.assert_array_equal(part, _spoil("haze", pixels, 3)[rows, columns])


def test_chains():
  pixels = draw(0, 32, 24)
  made = _spoil("bicubic|noise(sigma=5)", pixels, 7, scale=4)
  small = restoration.imresize(pixels, 1 / 4)
  np.testing.assert_array_equal(made, _spoil("noise(sigma=5)", small, 7))
  twice = _spoil("bicubic(scale=2)|bicubic(scale=2)|haze", pixels, scale=4)
  assert twice.shape == (8, 6, 3)


@pytest.mark.parametrize(
  ("spec", "scale", "match"),
  [
    ("blur", 1, "'blur' is none; there are bicubic, haze"),
    ("noise(sigma=-1)", 1, "sigma is"),
    ("noise(sigma=red)", 1, "noise"),
    ("noise(mean=3)", 1, r"options: sigma=25\."),
    ("jpeg(quality=0)", 1, "quality is"),
    ("jpeg(quality=101)", 1, "quality is 101"),
    ("jpeg(quality=40.5)", 1, "quality is 40.5"),
    ("rain(length=(5, 2))", 1, "length is"),
    ("haze(light=1.5)", 1, "light is 1.5"),
    ("noise", 2, "smaller by 1, but scale is 2"),
    ("bicubic", 1, "scale is 1"),
    ("bicubic|bicubic", 2, "smaller by 4, but scale is 2"),
    ("noise(", 1, "not of the form 'bicubic"),
  ],
)
def test_bad_specs(spec, scale, match):
  with pytest.raises(ValueError, match=match):
    degradations.create(spec, scale)
