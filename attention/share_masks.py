"""Windows that keep a share of the keys: Re-ttention's (arXiv 2505.22918)."""

import dataclasses

import jax
import numpy as np

from attention import band_masks, checks, grid_masks, mask_base
from attention.mask_base import Mask


def share_window(tokens: int, keep: float) -> Mask:
  """A window along a row of tokens that keeps a share of its keys.

  |i - j| <= floor(int(tokens * keep) / 2), cut at the ends: Re-ttention's mask
  of images, on the row-major order of patches. A share of 1 is all of them.

  Args:
    tokens: number of tokens.
    keep: share of the keys.

  Raises:
    ValueError: unless `keep` is above 0 and at most 1.
  """
  half = _half(tokens, keep)
  return band_masks.sliding_window(half, half)


def frame_window(
  frames: int, tokens: int, keep: float, *, text: int = 0
) -> Mask:
  """That window over the places of a frame, in every frame: for videos.

  A query at place p of its frame sees the places from p - h to p + h of all
  frames, h = floor(int(tokens * keep) / 2). Text sees and is seen by all.

  Args:
    frames: number of frames.
    tokens: tokens of a frame.
    keep: share of the keys.
    text: number of text tokens, behind those of the video. (CogVideoX, where
      the paper has it from, puts them before.)

  Raises:
    ValueError: unless `keep` is above 0 and at most 1.
  """
  checks.whole("frames", frames, 1)
  checks.whole("text", text, 0)
  half = _half(tokens, keep)
  window = grid_masks.inward_window(
    (frames, tokens), (None, half), inward=False
  )
  if not text:
    return window
  # Text is in no window: it is seen around them.
  bounds = (
    np.pad(bound, (0, text), constant_values=beyond)
    for bound, beyond in zip(window.bounds, (1, 0, -1), strict=True)
  )
  return grid_masks.GridWindow(tuple(bounds)) | TextAround(frames * tokens)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextAround(Mask):
  """Pairs of which one is behind the tokens of the grid: text."""

  places: int = dataclasses.field(metadata={"static": True})

  def visible(self, tile, *values):
    return (tile.q_index >= self.places) | (tile.k_index >= self.places)

  def tile_states(self, q_len, kv_len, block_q, block_k):
    some, whole = [], []
    for axis, (length, block) in enumerate(
      ((q_len, block_q), (kv_len, block_k))
    ):
      first = np.arange(0, length, block)
      last = np.minimum(first + block, length) - 1
      some.append(np.expand_dims(last >= self.places, 1 - axis))
      whole.append(np.expand_dims(first >= self.places, 1 - axis))
    return mask_base.states(~(some[0] | some[1]), whole[0] | whole[1])


def _half(tokens: int, keep: float) -> int:
  checks.whole("tokens", tokens, 1)
  checks.share("keep", keep, positive=True)
  # By the formula a share of one would still end within the row.
  return tokens if keep == 1 else int(tokens * keep) // 2
