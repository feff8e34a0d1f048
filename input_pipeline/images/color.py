"""Changes of colour and sharpness that differ from RandAugment's."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from input_pipeline import checks
from input_pipeline.images import transforms

# DeiT III's solarization and blur.
_THRESHOLD = 128
_RADIUS = (0.1, 2.0)


def color_jitter(
  brightness: float = 0.4,
  contrast: float = 0.4,
  saturation: float = 0.4,
  hue: float = 0.0,
) -> transforms.Transform:
  """Changes brightness, contrast, saturation and hue, in random order.

  Args:
    brightness: the factor is uniform in [1 - brightness, 1 + brightness], but
      not below 0. A factor f gives f * x + (1 - f) * black.
    contrast: likewise, with the mean brightness instead of black.
    saturation: likewise, with the grey image.
    hue: largest shift, as a share of the circle of colours; at most 0.5.

  Raises:
    ValueError: for negative numbers or a hue above 0.5.
  """
  checks.check_number("brightness", brightness)
  checks.check_number("contrast", contrast)
  checks.check_number("saturation", saturation)
  checks.check_number("hue", hue, 0.5)
  enhancements = [
    (enhancement, strength)
    for enhancement, strength in (
      (ImageEnhance.Brightness, brightness),
      (ImageEnhance.Contrast, contrast),
      (ImageEnhance.Color, saturation),
    )
    if strength
  ]
  steps = len(enhancements) + (hue > 0)

  def apply(image, rng):
    pil = transforms.to_pil(image)
    for step in rng.permutation(steps):
      if step == len(enhancements):
        pil = _shift_hue(pil, rng.uniform(-hue, hue))
        continue
      enhancement, strength = enhancements[step]
      factor = rng.uniform(max(0, 1 - strength), 1 + strength)
      pil = enhancement(pil).enhance(factor)
    return transforms.to_array(pil)

  return apply


def _shift_hue(image: Image.Image, share: float) -> Image.Image:
  """Turns the circle of colours; grey images have none."""
  if image.mode == "L":
    return image
  hue, saturation, value = image.convert("HSV").split()
  moved = hue.point([(i + round(255 * share)) % 256 for i in range(256)])
  return Image.merge("HSV", (moved, saturation, value)).convert("RGB")


def three_augment() -> transforms.Transform:
  """Makes the image grey, solarizes or blurs it, each a third of the time.

  DeiT III, https://arxiv.org/abs/2204.07118, section 3.2. Its recipe goes on
  with a jitter: `three_augment|color_jitter(0.3, 0.3, 0.3)`. Solarization
  inverts values from 128 on; the Gaussian's radius is uniform in [0.1, 2].
  """

  def apply(image, rng):
    pil = transforms.to_pil(image)
    return transforms.to_array(_THREE[rng.integers(3)](pil, rng))

  return apply


def _grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
  del rng
  return image.convert("L").convert(image.mode)


def _solarize(image: Image.Image, rng: np.random.Generator) -> Image.Image:
  del rng
  return ImageOps.solarize(image, _THRESHOLD)


def _blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
  return image.filter(ImageFilter.GaussianBlur(rng.uniform(*_RADIUS)))


_THREE = (_grey, _solarize, _blur)
