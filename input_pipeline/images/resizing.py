"""Crops and resizes, with which most transforms start."""

import dataclasses
import math

import cv2
import numpy as np
from PIL import Image

from input_pipeline import checks
from input_pipeline.images import decode, transforms

# Grain's threads have an image each; more for one image would be in the way.
cv2.setNumThreads(1)

Box = tuple[int, int, int, int]

_PILLOW = {
  "nearest": Image.Resampling.NEAREST,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "lanczos": Image.Resampling.LANCZOS,
}
_OPENCV = {
  "nearest": cv2.INTER_NEAREST_EXACT,
  "bilinear": cv2.INTER_LINEAR,
  "bicubic": cv2.INTER_CUBIC,
  "lanczos": cv2.INTER_LANCZOS4,
}


def resize(
  size: int, method: str = "bicubic", antialias: bool = True
) -> transforms.Transform:
  """Resizes to `size` x `size` pixels, whatever the aspect ratio ("squash").

  Args:
    size: of the result, in pixels.
    method: nearest, bilinear, bicubic or lanczos.
    antialias: widen the filter where the image shrinks, as Pillow, torchvision
      and timm do. False skips pixels, as `tf.image.resize` does, with which
      ResNet-RS and MaxViT were trained, and takes a fraction of the time.
  """
  transforms.check_size(size)
  check_method(method)

  def apply(image, rng):
    del rng
    return _resize(image, (size, size), method, antialias)

  return apply


def center_crop(ratio: float = 0.875) -> transforms.Transform:
  """Keeps the central square with `ratio` of the shorter side.

  `center_crop|resize` is the evaluation of the papers' TensorFlow code, where
  `ratio` is 0.875 or size / (size + 32), which is the same at 224 pixels.
  """
  _check_ratio(ratio)

  def apply(image, rng):
    del rng
    height, width, _ = image.shape
    side = max(1, int(ratio * min(height, width)))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return image[top : top + side, left : left + side]

  return apply


def resize_center_crop(
  size: int, ratio: float = 0.875, method: str = "bicubic"
) -> transforms.Transform:
  """Resizes the shorter side to `size / ratio` and keeps the central square.

  The evaluation of timm, which calls the ratio crop_pct, and of torchvision.
  It sees the same part of the image as `center_crop|resize`, up to rounding.
  """
  transforms.check_size(size)
  _check_ratio(ratio)
  check_method(method)
  short = math.floor(size / ratio)

  def apply(image, rng):
    del rng
    shorter = min(image.shape[:2])
    height, width = (short * side // shorter for side in image.shape[:2])
    resized = _resize(image, (height, width), method, antialias=True)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized[top : top + size, left : left + size]

  return apply


def random_resized_crop(
  size: int,
  area: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "bicubic",
  antialias: bool = True,
) -> transforms.Transform:
  """Resizes a random part of the image to `size` x `size` pixels.

  The "Inception crop" of https://arxiv.org/abs/1409.4842, section 6: ten tries
  to find a part of such an area and ratio that fits, then the central square.

  Args:
    size: of the result, in pixels.
    area: least and greatest share of the image's area that is kept.
    ratio: least and greatest width / height of the part; its logarithm is
      uniform, so that wide and tall are as likely.
    method: of resizing, as in `resize`.
    antialias: as in `resize`. True reads large JPEGs at a half, a quarter or an
      eighth of their size, if the part has the pixels for it.
  """
  transforms.check_size(size)
  checks.check_interval("area", area)
  checks.check_interval("ratio", ratio)
  if area[1] > 1:
    raise ValueError(f"area is {area}, but no part is larger than 1.")
  check_method(method)
  return _RandomResizedCrop(size, area, ratio, method, antialias)


@dataclasses.dataclass(frozen=True)
class _RandomResizedCrop:
  """A transform that can start from an encoded image as well."""

  size: int
  area: tuple[float, float]
  ratio: tuple[float, float]
  method: str
  antialias: bool

  def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    box = sample_box(image.shape, self.area, self.ratio, rng)
    return self._cut(image, box, 1)

  def decode(
    self, encoded: decode.EncodedImage, rng: np.random.Generator
  ) -> np.ndarray:
    """The same part as of the decoded image, decoded no finer than needed.

    A filter that averages many pixels may as well begin with averages of few;
    noise with the spectrum of photographs moves by some 4 of 255 on average.
    """
    box = sample_box(encoded.shape, self.area, self.ratio, rng)
    shrinks = min(box[2] - box[0], box[3] - box[1]) / self.size
    most = shrinks if self.antialias else 1
    divisor = max(d for d in encoded.divisors if d <= max(1, most))
    return self._cut(encoded.decode(divisor), box, divisor)

  def _cut(self, image: np.ndarray, box: Box, divisor: int) -> np.ndarray:
    """Resizes a box of an image whose sides were divided."""
    left, top, right, bottom = box
    first_column, first_row = left // divisor, top // divisor
    part = image[
      first_row : -(-bottom // divisor), first_column : -(-right // divisor)
    ]
    within = (
      left / divisor - first_column,
      top / divisor - first_row,
      right / divisor - first_column,
      bottom / divisor - first_row,
    )
    return _resize(
      part, (self.size, self.size), self.method, self.antialias, within
    )


def sample_box(
  shape: tuple[int, ...],
  area: tuple[float, float],
  ratio: tuple[float, float],
  rng: np.random.Generator,
) -> Box:
  """Left, top, right and bottom of a random part of the image."""
  image_height, image_width, _ = shape
  # A few tries, for a part may be wider or taller than the image.
  for _ in range(10):
    target = rng.uniform(*area) * image_height * image_width
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    width = max(1, round(math.sqrt(target * aspect)))
    height = max(1, round(math.sqrt(target / aspect)))
    if width <= image_width and height <= image_height:
      left = int(rng.integers(0, image_width - width, endpoint=True))
      top = int(rng.integers(0, image_height - height, endpoint=True))
      return left, top, left + width, top + height
  side = min(image_height, image_width)
  left, top = (image_width - side) // 2, (image_height - side) // 2
  return left, top, left + side, top + side


def _resize(
  image: np.ndarray,
  sides: tuple[int, int],
  method: str,
  antialias: bool,
  box: tuple[float, ...] | None = None,
) -> np.ndarray:
  """Resizes to (height, width), by Pillow or, without antialias, by OpenCV.

  Only Pillow takes a box, left, top, right and bottom, between the pixels.
  """
  height, width = sides
  if antialias:
    resized = transforms.to_pil(image).resize(
      (width, height), _PILLOW[method], box
    )
    return transforms.to_array(resized)
  resized = cv2.resize(image, (width, height), interpolation=_OPENCV[method])
  return resized.reshape(height, width, -1)


def check_method(method: str) -> None:
  """Raises `ValueError` unless it is a method of interpolation."""
  if method not in _PILLOW:
    raise ValueError(f"method is {method!r}, but must be one of {[*_PILLOW]}.")


def _check_ratio(ratio: float) -> None:
  if not 0 < ratio <= 1:
    raise ValueError(f"ratio is {ratio}, but it must be in (0, 1].")
