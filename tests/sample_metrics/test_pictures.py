"""PSNR and SSIM: restatements, scikit-image's, and published figures."""

import math
import pathlib

import numpy as np
import pytest
from PIL import Image
from skimage import color, metrics

from input_pipeline import restoration
from sample_metrics import pictures

SETS = pathlib.Path(__file__).parents[3] / "shared/data/super_resolution"
SET5 = SETS / "Set5/x4"


@pytest.fixture(scope="module")
def pair():
  """A noisy image and a clean one of 23 x 31 pixels."""
  rng = np.random.default_rng(0)
  clean = rng.integers(0, 256, (6, 8, 3)).repeat(4, 0).repeat(4, 1)[:23, :31]
  noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255)
  return noisy.astype(np.uint8), clean.astype(np.uint8)


def test_luma(pair):
  made = pictures.luma(pair[0])[..., 0]
  np.testing.assert_allclose(made, color.rgb2ycbcr(pair[0])[..., 0], rtol=1e-12)
  ends = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
  np.testing.assert_allclose(pictures.luma(ends).ravel(), [16, 235], rtol=1e-12)
  np.testing.assert_allclose(pictures.luma(pair[0] / 255)[..., 0], made)


@pytest.mark.parametrize("shave", [0, 3])
def test_scikit_images(pair, shave):
  found = pictures.figures(*pair, shave=shave)
  cut = slice(shave, -shave or None)
  a, b = (image[cut, cut] for image in pair)
  luma = [color.rgb2ycbcr(image)[..., 0] for image in (a, b)]
  options = dict(
    data_range=255,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
  )
  rgb = dict(options, channel_axis=-1)
  wanted = {
    "psnr_y": metrics.peak_signal_noise_ratio(*luma[::-1], data_range=255),
    "ssim_y": metrics.structural_similarity(*luma, **options),
    "psnr_rgb": metrics.peak_signal_noise_ratio(b, a),
    "ssim_rgb": metrics.structural_similarity(a, b, **rgb),
  }
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    assert math.isclose(found[name], value, rel_tol=1e-12), name


def test_one_window(pair):
  """Wang's formula, of an image that is one window."""
  a, b = (pictures.luma(image[:11, :11])[..., 0] for image in pair)
  y, x = np.mgrid[-5:6, -5:6]
  w = np.exp(-(y**2 + x**2) / (2 * 1.5**2))
  w /= w.sum()
  mean_a, mean_b = (w * a).sum(), (w * b).sum()
  var_a, var_b = (w * (a - mean_a) ** 2).sum(), (w * (b - mean_b) ** 2).sum()
  both = (w * (a - mean_a) * (b - mean_b)).sum()
  wanted = (2 * mean_a * mean_b + 6.5025) * (2 * both + 58.5225)
  wanted /= (mean_a**2 + mean_b**2 + 6.5025) * (var_a + var_b + 58.5225)
  found = pictures.ssim(*(image[:11, :11] for image in pair))
  assert math.isclose(found, wanted, rel_tol=1e-10)


def test_equal_images_and_floating_ones(pair):
  noisy, clean = pair
  same = pictures.figures(clean, clean)
  assert same["psnr_y"] == same["psnr_rgb"] == math.inf
  assert math.isclose(same["ssim_y"], 1)
  # Bytes are rounded, floating images are not, and both are cut off.
  floating = noisy / 255 + 0.3 / 255
  assert (pictures.to_bytes(floating) == noisy).all()
  assert pictures.psnr(floating, clean) != pictures.psnr(noisy, clean)
  assert pictures.to_bytes(np.float32([-1, 0, 0.5, 2])).tolist() == [
    *(0, 0, 128, 255)
  ]
  far = np.where(clean == 255, 7.0, clean / 255)
  assert pictures.psnr(far, clean / 255, on="rgb") == math.inf


def test_bad_input(pair):
  noisy, clean = pair
  for call, match in (
    (lambda: pictures.psnr(noisy[1:], clean), r"\[22, 31, 3\]"),
    (lambda: pictures.psnr(noisy[..., 0], clean[..., 0]), "one size"),
    (lambda: pictures.psnr(noisy.astype(int), clean), "int64"),
    (lambda: pictures.psnr(noisy, clean, on="Y"), "on is 'Y'"),
    (lambda: pictures.psnr(noisy, clean, shave=12), "shave is 12"),
    (lambda: pictures.psnr(noisy, clean, shave=-1), "shave is -1"),
    (lambda: pictures.ssim(noisy, clean, shave=7), "9 x 17 pixels without 7"),
  ):
    with pytest.raises(ValueError, match=match):
      call()


def test_bicubic_on_set5_is_what_was_measured():
  """Pillow's 28.4304 dB (span's sheet), and MATLAB's 28.42 that papers have.

  These interpolate Y alone, as bytes.
  """
  if not SET5.is_dir():
    pytest.skip(f"{SET5} is not there")
  config = restoration.default_config()
  config.name, config.folder, config.scale = "folder", str(SET5), 4
  pillow, matlab = [], []
  for _, degraded, clean, _ in restoration.eval_pairs(config):
    size = clean.shape[1::-1]
    made = Image.fromarray(degraded).resize(size, Image.Resampling.BICUBIC)
    pillow.append(pictures.psnr(np.asarray(made), clean, shave=4))
    y = np.round(pictures.luma(clean)).astype(np.uint8)
    made = restoration.imresize(restoration.imresize(y, 1 / 4), 4)
    error = (made.astype(float) - y)[4:-4, 4:-4]
    matlab.append(10 * math.log10(255**2 / np.mean(error**2)))
  np.testing.assert_allclose(
    pillow, [31.78, 30.18, 22.10, 31.61, 26.47], atol=0.006
  )
  assert abs(np.mean(pillow) - 28.4304) < 1e-4
  assert round(np.mean(matlab), 2) == 28.42
