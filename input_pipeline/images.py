"""What all transforms of single images share."""

from collections.abc import Callable

import numpy as np
from PIL import Image

# Takes and returns uint8 `[height, width, channels]`.
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def to_pil(image: np.ndarray) -> Image.Image:
  """Pillow's image: grey of one channel, RGB of three."""
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_array(image: Image.Image) -> np.ndarray:
  """Pillow's image as uint8 `[height, width, channels]`."""
  array = np.asarray(image)
  return array.reshape(*array.shape[:2], -1)


def check_size(size: int) -> None:
  """Raises `ValueError` unless it is a number of pixels."""
  if not isinstance(size, int) or size < 1:
    raise ValueError(f"size is {size!r}, but it must be an int of at least 1.")


def check_interval(name: str, interval: tuple[float, float]) -> None:
  """Raises `ValueError` unless it is two positive numbers in order."""
  if not 0 < interval[0] <= interval[1]:
    raise ValueError(
      f"{name} is {interval}, but it must be a pair 0 < least <= greatest."
    )


def check_probability(probability: float) -> None:
  """Raises `ValueError` unless it is in [0, 1]."""
  if not 0 <= probability <= 1:
    raise ValueError(f"probability is {probability}, but must be in [0, 1].")
