"""Transforms of single images, each made by a function of its options.

A transform takes a uint8 image `[height, width, channels]` and a random
generator, and returns a uint8 image with the same channels. `OPERATIONS` are
those that a config can name; `transform_spec.py` reads them from a string.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_METHODS = {
  "nearest": Image.Resampling.NEAREST,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "lanczos": Image.Resampling.LANCZOS,
}


def resize(size: int, method: str = "bicubic") -> Transform:
  """Resizes to `size` x `size` pixels, whatever the aspect ratio.

  Pillow widens the filter when it shrinks, so there is no aliasing.
  """
  _check_size(size)
  resampling = _get_method(method)

  def apply(image, rng):
    del rng
    return _to_array(_to_pil(image).resize((size, size), resampling))

  return apply


def center_crop(ratio: float = 0.875) -> Transform:
  """Keeps the central square with `ratio` of the shorter side.

  0.875 is 224 / 256, the usual evaluation crop of ImageNet.
  """
  if not 0 < ratio <= 1:
    raise ValueError(f"ratio is {ratio}, but it must be in (0, 1].")

  def apply(image, rng):
    del rng
    height, width, _ = image.shape
    side = max(1, round(ratio * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]

  return apply


def random_resized_crop(
  size: int,
  area: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  method: str = "bicubic",
) -> Transform:
  """Resizes a random part of the image to `size` x `size` pixels.

  The "Inception crop" of https://arxiv.org/abs/1409.4842, section 6.

  Args:
    size: of the result, in pixels.
    area: least and greatest share of the image's area that is kept.
    ratio: least and greatest width / height of the part; its logarithm is
      uniform, so that wide and tall are as likely.
    method: of resizing.
  """
  _check_size(size)
  _check_interval("area", area)
  _check_interval("ratio", ratio)
  if area[1] > 1:
    raise ValueError(f"area is {area}, but no part is larger than 1.")
  resampling = _get_method(method)

  def apply(image, rng):
    box = _sample_box(image.shape, area, ratio, rng)
    # Cropping inside `resize` reads only the part.
    resized = _to_pil(image).resize((size, size), resampling, box=box)
    return _to_array(resized)

  return apply


def shift(pixels: int = 4) -> Transform:
  """Moves the image by up to `pixels` each way; what enters is black."""
  if pixels < 0:
    raise ValueError(f"pixels is {pixels}, but it must not be negative.")

  def apply(image, rng):
    height, width, _ = image.shape
    top, left = rng.integers(0, 2 * pixels, size=2, endpoint=True)
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    return padded[top : top + height, left : left + width]

  return apply


def affine(
  size: int,
  rotate: float = 0.0,
  shift: float = 0.0,
  zoom: float = 0.0,
  method: str = "bilinear",
) -> Transform:
  """Rotates, moves, zooms and resizes to `size` x `size` in a single warp.

  One interpolation blurs small images less than one for each step. The warp
  does not smooth, so shrink large images with `resize` first.

  Args:
    size: of the result, in pixels.
    rotate: largest angle, in degrees.
    shift: largest move, as a share of the side.
    zoom: largest change of the scale; 0.1 is from 0.9 to 1.1.
    method: of interpolation; what comes from outside the image is black.
  """
  _check_size(size)
  if min(rotate, shift, zoom) < 0 or zoom >= 1:
    raise ValueError(
      f"rotate={rotate}, shift={shift} and zoom={zoom} must not be negative,"
      " and zoom must be less than 1."
    )
  resampling = _get_method(method)

  def apply(image, rng):
    height, width, _ = image.shape
    turn, right, down, grow = rng.uniform(-1, 1, size=4).tolist()
    angle, scale = math.radians(rotate * turn), 1 + zoom * grow
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    # Pillow wants the way back, from a pixel (x, y) of the result to one of
    # the image. In between, both are squares with side 1 around 0.
    x, y = 0.5 + shift * right, 0.5 + shift * down
    to_column = (cos / size, sin / size, 0.5 - cos * x - sin * y)
    to_row = (-sin / size, cos / size, 0.5 + sin * x - cos * y)
    coefficients = [width * c for c in to_column] + [height * c for c in to_row]
    warped = _to_pil(image).transform(
      (size, size), Image.Transform.AFFINE, coefficients, resampling
    )
    return _to_array(warped)

  return apply


def flip(probability: float = 0.5) -> Transform:
  """Mirrors left and right."""
  if not 0 <= probability <= 1:
    raise ValueError(f"probability is {probability}, but must be in [0, 1].")

  def apply(image, rng):
    return image[:, ::-1] if rng.random() < probability else image

  return apply


OPERATIONS = {
  operation.__name__: operation
  for operation in (
    affine,
    center_crop,
    flip,
    random_resized_crop,
    resize,
    shift,
  )
}


def _sample_box(
  shape: tuple[int, ...],
  area: tuple[float, float],
  ratio: tuple[float, float],
  rng: np.random.Generator,
) -> tuple[int, int, int, int]:
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


def _to_pil(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _to_array(image: Image.Image) -> np.ndarray:
  array = np.asarray(image)
  return array.reshape(*array.shape[:2], -1)


def _get_method(method: str) -> Image.Resampling:
  if method not in _METHODS:
    raise ValueError(f"method is {method!r}, but must be one of {[*_METHODS]}.")
  return _METHODS[method]


def _check_size(size: int) -> None:
  if not isinstance(size, int) or size < 1:
    raise ValueError(f"size is {size!r}, but it must be an int of at least 1.")


def _check_interval(name: str, interval: tuple[float, float]) -> None:
  if not 0 < interval[0] <= interval[1]:
    raise ValueError(
      f"{name} is {interval}, but it must be a pair 0 < least <= greatest."
    )
