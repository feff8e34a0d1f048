"""Moves, turns and mirrors images."""

import math

import cv2
import numpy as np
from PIL import Image

from input_pipeline import checks
from input_pipeline.images import transforms

_METHODS = {
  "nearest": Image.Resampling.NEAREST,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
}


def shift(pixels: int = 4) -> transforms.Transform:
  """Moves the image by up to `pixels` each way; what enters is black."""
  checks.check_integer("pixels", pixels, 0)

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
) -> transforms.Transform:
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
  transforms.check_size(size)
  checks.check_number("rotate", rotate)
  checks.check_number("shift", shift)
  checks.check_number("zoom", zoom)
  if zoom >= 1:
    raise ValueError(f"zoom is {zoom}, but must be less than 1.")
  _check_method(method)

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
    warped = transforms.to_pil(image).transform(
      (size, size), Image.Transform.AFFINE, coefficients, _METHODS[method]
    )
    return transforms.to_array(warped)

  return apply


def turn(
  degrees: float = 90.0, probability: float = 1.0, method: str = "bilinear"
) -> transforms.Transform:
  """Turns the image around its centre, always by one angle.

  Args:
    degrees: to the left, positive or negative.
    probability: of turning at all.
    method: of interpolation; what comes from outside the image is black.
  """
  checks.check_number("degrees", abs(degrees))
  checks.check_probability(probability)
  _check_method(method)

  def apply(image, rng):
    if rng.random() >= probability:
      return image
    turned = transforms.to_pil(image).rotate(degrees, _METHODS[method])
    return transforms.to_array(turned)

  return apply


def flip(probability: float = 0.5) -> transforms.Transform:
  """Mirrors left and right."""
  checks.check_probability(probability)

  def apply(image, rng):
    if rng.random() >= probability:
      return image
    # A mirrored view would cost what comes next ten times as much.
    return cv2.flip(image, 1).reshape(image.shape)

  return apply


def _check_method(method: str) -> None:
  if method not in _METHODS:
    raise ValueError(f"method is {method!r}, but must be one of {[*_METHODS]}.")
