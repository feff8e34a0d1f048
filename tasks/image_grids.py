"""Pictures of samples: a grid of images, and the order of their tokens."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Images with fewer pixels a side are enlarged to about as many.
_SIDE = 64
_GAP = 2
_BACKGROUND = 255
# What is not made yet.
_BLANK = 112
# Milliseconds of all steps together, each at least and at most as long, and of
# the last picture.
_DURATION, _SHORTEST, _LONGEST, _PAUSE = 5000, 40, 400, 2500


def grid(images: np.ndarray) -> np.ndarray:
  """Puts images side by side, small ones enlarged by a whole factor.

  Args:
    images: uint8 [rows, columns, height, width, channels].

  Returns:
    uint8 [height, width, channels], with white between the images.
  """
  images = enlarge(images)
  gap = ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0))
  images = np.pad(images, gap, constant_values=_BACKGROUND)
  rows, columns, height, width, channels = images.shape
  whole = images.swapaxes(1, 2).reshape(
    rows * height, columns * width, channels
  )
  edge = ((_GAP, 0), (_GAP, 0), (0, 0))
  return np.pad(whole, edge, constant_values=_BACKGROUND)


def enlarge(images: np.ndarray) -> np.ndarray:
  """Repeats pixels until images [..., height, width, channels] are seen."""
  factor = max(1, round(_SIDE / max(images.shape[-3:-1])))
  return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def frames(
  images: np.ndarray, order: np.ndarray, tokens: tuple[int, int]
) -> list[np.ndarray]:
  """Grids of what there is before the first step and after each.

  Args:
    images: uint8 [rows, columns, height, width, channels], as they became.
    order: integers [rows, columns, N], the step at which each token was made.
    tokens: rows and columns of the tokens of an image.
  """
  height, width = (
    have // n for have, n in zip(images.shape[2:4], tokens, strict=True)
  )
  order = order.reshape(*order.shape[:2], *tokens, 1)
  order = order.repeat(height, axis=2).repeat(width, axis=3)
  blank = np.full_like(images, _BLANK)
  steps = [order.min() - 1, *np.unique(order)]
  return [grid(np.where(order <= step, images, blank)) for step in steps]


def encode(
  pictures: Sequence[np.ndarray],
  suffix: str,
  durations: Sequence[int] | None = None,
) -> bytes:
  """Makes a file of a picture, or of an animation if there are several.

  Args:
    pictures: uint8 [height, width, 1 or 3].
    suffix: ".png" or ".gif".
    durations: milliseconds of each; some seconds of all together, and a pause
      at the end, if None.
  """
  first, *others = (Image.fromarray(_squeezed(picture)) for picture in pictures)
  options = {}
  if others:
    step = min(max(_DURATION // len(others), _SHORTEST), _LONGEST)
    options = {
      "save_all": True,
      "append_images": others,
      "duration": durations or [step] * len(others) + [_PAUSE],
      "loop": 0,
    }
  buffer = io.BytesIO()
  first.save(buffer, suffix.removeprefix("."), **options)
  return buffer.getvalue()


def _squeezed(picture):
  return picture[..., 0] if picture.shape[-1] == 1 else picture
