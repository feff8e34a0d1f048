"""What all transforms of single images share."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from input_pipeline import checks

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
  checks.check_integer("size", size, 1)
