"""The sixteen operations of AutoAugment and RandAugment, as in TensorFlow.

AutoAugment: https://arxiv.org/abs/1805.09501. RandAugment:
https://arxiv.org/abs/1909.13719. What the operations do and how strong a level
is follows the code that EfficientNet, ResNet-RS and MaxViT were trained with
(`efficientnet/autoaugment.py`, and `official/vision/ops/augment.py` of the
TensorFlow models). It differs from Pillow's operations, and from others made
after the paper, in several places:

- warps take the nearest pixel, and what comes from outside the image is grey
  (128);
- translation is in pixels, whatever the size of the image;
- posterize and solarize are weaker at higher levels;
- contrast scales around `pixels / 256` (at most 255) where Pillow has the mean
  brightness: the original sums a histogram without weighting its bins.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_FILL = 128


@dataclasses.dataclass(frozen=True)
class Strength:
  """What a level means where the recipes differ.

  Attributes:
    translate: pixels at level 10.
    cutout: half the side of the square at level 10, in pixels.
    increasing: a higher level is always a stronger change, as timm's "inc1"
      has it. Otherwise the enhancements' factor grows from 0.1 through 1, no
      change, to beyond, and posterize and solarize weaken.
  """

  translate: float
  cutout: float
  increasing: bool = False


Operation = Callable[
  [Image.Image, float, Strength, np.random.Generator], Image.Image
]


def _auto_contrast(image, level, strength, rng):
  return ImageOps.autocontrast(image)


def _equalize(image, level, strength, rng):
  return ImageOps.equalize(image)


def _invert(image, level, strength, rng):
  return ImageOps.invert(image)


def _posterize(image, level, strength, rng):
  bits = int(level / 10 * 4)
  bits = 4 - bits if strength.increasing else bits
  # Pillow's own refuses 0 bits, of which TensorFlow makes black.
  mask = 256 - 2 ** (8 - min(8, max(0, bits)))
  return _map_values(image, [value & mask for value in range(256)])


def _solarize(image, level, strength, rng):
  threshold = int(level / 10 * 256)
  return ImageOps.solarize(
    image, 256 - threshold if strength.increasing else threshold
  )


def _solarize_add(image, level, strength, rng):
  added = int(level / 10 * 110)
  return _map_values(
    image, [min(255, v + added) if v < 128 else v for v in range(256)]
  )


def _color(image, level, strength, rng):
  return ImageEnhance.Color(image).enhance(_factor(level, strength, rng))


def _contrast(image, level, strength, rng):
  grey = min(255, image.width * image.height // 256)
  degenerate = Image.new(image.mode, image.size, _fill(image, grey))
  return Image.blend(degenerate, image, _factor(level, strength, rng))


def _brightness(image, level, strength, rng):
  return ImageEnhance.Brightness(image).enhance(_factor(level, strength, rng))


def _sharpness(image, level, strength, rng):
  return ImageEnhance.Sharpness(image).enhance(_factor(level, strength, rng))


def _factor(
  level: float, strength: Strength, rng: np.random.Generator
) -> float:
  """Of an enhancement: 0 is all degenerate, 1 the image, above 1 beyond it."""
  if strength.increasing:
    return max(0.1, 1 + _sign(rng) * level / 10 * 0.9)
  return level / 10 * 1.8 + 0.1


def _rotate(image, level, strength, rng):
  return image.rotate(
    _sign(rng) * level / 10 * 30,
    Image.Resampling.NEAREST,
    fillcolor=_fill(image, _FILL),
  )


def _shear_x(image, level, strength, rng):
  shear = _sign(rng) * level / 10 * 0.3
  return _warp(image, (1, shear, 0, 0, 1, 0))


def _shear_y(image, level, strength, rng):
  shear = _sign(rng) * level / 10 * 0.3
  return _warp(image, (1, 0, 0, shear, 1, 0))


def _translate_x(image, level, strength, rng):
  pixels = _sign(rng) * level / 10 * strength.translate
  return _warp(image, (1, 0, pixels, 0, 1, 0))


def _translate_y(image, level, strength, rng):
  pixels = _sign(rng) * level / 10 * strength.translate
  return _warp(image, (1, 0, 0, 0, 1, pixels))


def _cutout(image, level, strength, rng):
  """A grey square around a uniform pixel, cut off at the border."""
  half = int(level / 10 * strength.cutout)
  row, column = rng.integers((image.height, image.width)).tolist()
  box = (
    max(0, column - half),
    max(0, row - half),
    min(image.width, column + half),
    min(image.height, row + half),
  )
  result = image.copy()
  result.paste(_fill(image, _FILL), box)
  return result


def _map_values(image: Image.Image, table: list[int]) -> Image.Image:
  """Looks up each value of each channel."""
  return image.point(table * len(image.getbands()))


def _warp(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
  """Pixel (x, y) of the result is (a x + b y + c, d x + e y + f) of the image.

  x and y are whole numbers as in TensorFlow, where Pillow counts from the
  border and has the middle of the first pixel at 0.5.
  """
  a, b, c, d, e, f = coefficients
  c += 0.5 - 0.5 * (a + b)
  f += 0.5 - 0.5 * (d + e)
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    (a, b, c, d, e, f),
    Image.Resampling.NEAREST,
    fillcolor=_fill(image, _FILL),
  )


def _fill(image: Image.Image, value: int) -> int | tuple[int, ...]:
  """A grey in the image's mode."""
  return value if image.mode == "L" else (value,) * len(image.getbands())


def _sign(rng: np.random.Generator) -> int:
  return 1 if rng.random() < 0.5 else -1


OPERATIONS: dict[str, Operation] = {
  "AutoContrast": _auto_contrast,
  "Equalize": _equalize,
  "Invert": _invert,
  "Rotate": _rotate,
  "Posterize": _posterize,
  "Solarize": _solarize,
  "Color": _color,
  "Contrast": _contrast,
  "Brightness": _brightness,
  "Sharpness": _sharpness,
  "ShearX": _shear_x,
  "ShearY": _shear_y,
  "TranslateX": _translate_x,
  "TranslateY": _translate_y,
  "Cutout": _cutout,
  "SolarizeAdd": _solarize_add,
}
