"""MATLAB's bicubic interpolation, with which the field's data were made."""

import math

import numpy as np


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
  """Resizes as MATLAB's `imresize(image, scale, "bicubic")`.

  Keys' kernel with a = -1/2, stretched by 1 / scale where it shrinks, so that
  nothing aliases. Rows are resized before columns, and uint8 is rounded, halves
  up, after each. Beyond the edges the outermost pixels repeat, as in the MATLAB
  that made the public test sets: from the same files this gives theirs, bit by
  bit. (Later versions of MATLAB mirror the image there, which changes the two
  outermost pixels.)

  Args:
    image: [height, width, ...], uint8 or floating.
    scale: of both sides, above 0; 0.25 gives a sixteenth of the pixels.

  Returns:
    [ceil(scale * height), ceil(scale * width), ...] of the same dtype.

  Raises:
    ValueError: for another dtype, fewer than two axes, no pixels or a scale
      that is not positive.
  """
  image = np.asarray(image)
  floating = np.issubdtype(image.dtype, np.floating)
  if (
    image.ndim < 2
    or not image.size
    or not (floating or image.dtype == np.uint8)
  ):
    raise ValueError(
      f"image is {image.dtype} {list(image.shape)}, but must be uint8 or "
      "floating [height, width, ...], and not empty."
    )
  if not 0 < scale < math.inf:
    raise ValueError(f"scale is {scale}, but must be a positive number.")
  for axis in range(2):
    moved = np.moveaxis(image, axis, 0)
    resized = _resize_rows(moved.astype(np.float64), scale)
    if not floating:
      resized = np.floor(np.clip(resized, 0, 255) + 0.5)
    image = np.moveaxis(resized.astype(image.dtype), 0, axis)
  return np.ascontiguousarray(image)


def _resize_rows(image: np.ndarray, scale: float) -> np.ndarray:
  """Resizes the first axis of float64."""
  weights, indices = _taps(len(image), scale)
  ones = (1,) * (image.ndim - 1)
  # Tap by tap and no matrix product: the sum is then the same on any machine,
  # and rounds to the same byte.
  return sum(
    weights[:, tap].reshape(-1, *ones) * image[indices[:, tap]]
    for tap in range(weights.shape[1])
  )


def _taps(length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """Weights and indices [outputs, taps] of the pixels that each is a sum of."""
  shrink = min(scale, 1.0)
  places = (np.arange(math.ceil(length * scale)) + 0.5) / scale - 0.5
  reach = 2 / shrink
  first = np.floor(places - reach).astype(int)
  indices = first[:, None] + np.arange(math.ceil(2 * reach) + 2)
  weights = _cubic((places[:, None] - indices) * shrink)
  weights /= weights.sum(1, keepdims=True)
  return weights, np.clip(indices, 0, length - 1)


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys' kernel (1981), a = -1/2."""
  x = np.abs(x)
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x <= 1, near, np.where(x <= 2, far, 0))
