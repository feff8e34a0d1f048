"""What all transforms of single images share."""

import math
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
  check_integer("size", size, 1)


def check_integer(name: str, value: int, least: int) -> None:
  """Raises `ValueError` unless it is an int of at least `least`."""
  if type(value) is not int or value < least:
    raise ValueError(
      f"{name} is {value!r}, but it must be an int of at least {least}."
    )


def check_number(name: str, value: float, greatest: float = math.inf) -> None:
  """Raises `ValueError` unless it is finite, from 0 to `greatest`."""
  if not (0 <= value <= greatest and value < math.inf):
    end = "" if greatest == math.inf else f" to {greatest}"
    raise ValueError(f"{name} is {value}, but must be a number from 0{end}.")


def check_interval(name: str, interval: tuple[float, float]) -> None:
  """Raises `ValueError` unless it is two positive numbers in order."""
  if len(interval) != 2 or not 0 < interval[0] <= interval[1] < math.inf:
    raise ValueError(
      f"{name} is {interval}, but it must be a pair 0 < least <= greatest."
    )


def check_probability(probability: float) -> None:
  """Raises `ValueError` unless it is in [0, 1]."""
  check_number("probability", probability, 1)
