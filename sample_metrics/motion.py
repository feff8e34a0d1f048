"""Whether what moves in a video stays what it is from frame to frame."""

from typing import NamedTuple

import numpy as np

_BLOCK = 4


class Motion(NamedTuple):
  """Figures of videos.

  Attributes:
    consistency: the share of what is seen that is found again in the frame
      before; at most 1, for things that only move.
    amount: the mean squared change of a pixel from frame to frame over the mean
      square of what is seen, 0 for a video that stands still.
  """

  consistency: float
  amount: float


def motion(videos: np.ndarray, *, reach: int = 2) -> Motion:
  """Matches blocks of each frame with the frame before.

  Each block of 4 x 4 pixels is compared with the frame before at all shifts of
  whole pixels up to `reach`, beyond whose edges it is black, and the best
  counts: consistency = 1 - sum of squared differences / sum of squares, of all
  blocks of all frames but the first.

  Args:
    videos: [batch, frames, height, width, channels], where 0 is black; sides
      are multiples of 4.
    reach: the most pixels that something moves in a direction.

  Raises:
    ValueError: for sides that blocks do not divide, fewer than two frames, or
      videos that are black.
  """
  videos = np.asarray(videos, np.float64)
  if videos.ndim != 5 or videos.shape[1] < 2:
    raise ValueError(
      f"videos are {list(videos.shape)}, but they must be [batch, frames, "
      "height, width, channels] with two frames or more."
    )
  if any(side % _BLOCK for side in videos.shape[2:4]):
    raise ValueError(
      f"videos have frames of {videos.shape[2]} x {videos.shape[3]} pixels, "
      f"but sides must be multiples of {_BLOCK}."
    )
  later = videos[:, 1:]
  energy = np.square(later).sum()
  if not energy:
    raise ValueError("videos are black: nothing in them can move.")
  edge = [(0, 0)] * 2 + [(reach, reach)] * 2 + [(0, 0)]
  before = np.pad(videos[:, :-1], edge)
  height, width = videos.shape[2:4]
  best = np.inf
  for y in range(2 * reach + 1):
    for x in range(2 * reach + 1):
      shifted = before[:, :, y : y + height, x : x + width]
      best = np.minimum(best, _by_block(np.square(later - shifted)))
  changed = np.square(later - videos[:, :-1]).sum()
  return Motion(float(1 - best.sum() / energy), float(changed / energy))


def _by_block(pixels: np.ndarray) -> np.ndarray:
  """Sums [batch, frames, height, width, channels] over blocks."""
  batch, frames, height, width, channels = pixels.shape
  cut = (height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
  return pixels.reshape(batch, frames, *cut, channels).sum((3, 5, 6))
