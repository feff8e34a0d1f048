"""Masks of tokens that form a grid: images and videos in raster order."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attention import checks, mask_base
from attention.mask_base import Blocks, Mask
from attention.tiles import Operand


def inward_window(
  shape: Sequence[int], radius: Sequence[int | None], *, inward: bool = True
) -> Mask:
  """A window around each token that is pushed inward at the borders.

  Along an axis of length n a query at position p sees the 2 r + 1 keys from
  clip(p - r, 0, n - (2 r + 1)) on, so that queries at a border see as many keys
  as those in the middle. FreeSwim (arXiv 2511.14712) has it over height and
  width with all frames visible: `inward_window((T, H, W), (None, h, w))`.

  Args:
    shape: the sides of the grid, whose tokens come in row-major order.
    radius: r along each axis; None to see all of the axis.
    inward: False cuts the window at the borders instead.

  Raises:
    ValueError: if `radius` has not one entry, at least 0, for each side.
  """
  checks.wholes("shape", shape, 1)
  checks.flag("inward", inward)
  several = hasattr(radius, "__len__")
  if several:
    given = [r for r in radius if r is not None]
    checks.wholes("radius", given, entry="an entry")
  if not several or len(radius) != len(shape) or any(r < 0 for r in given):
    shown = tuple(radius) if several else radius
    raise ValueError(
      f"radius is {shown}; a grid of {tuple(shape)} needs a radius of "
      "at least 0, or None, for each of its axes"
    )
  coordinates = np.unravel_index(np.arange(math.prod(shape)), shape)
  bounds = []
  for position, side, r in zip(coordinates, shape, radius, strict=True):
    if r is None or (inward and 2 * r + 1 >= side):
      continue
    first, last = position - r, position + r
    if inward:
      first = np.clip(first, 0, side - (2 * r + 1))
      last = first + 2 * r
    bounds += [x.astype(np.int32) for x in (first, last, position)]
  return GridWindow(tuple(bounds))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GridWindow(Mask):
  """For each axis: the first and last coordinate that each query sees, and the
  coordinate of each key, all [tokens]."""

  bounds: tuple[np.ndarray | Array, ...]

  def operands(self):
    axes = ("q", "q", "k") * (len(self.bounds) // 3)
    return tuple(map(Operand, self.bounds, axes))

  def visible(self, tile, *values):
    seen = (tile.q_index >= 0) & (tile.k_index >= 0)
    for first, last, position in zip(*[iter(values)] * 3, strict=True):
      seen &= (first <= position) & (position <= last)
    return seen

  def reordered(self, order, k_order=None):
    orders = (order, order, order if k_order is None else k_order)
    return GridWindow(
      tuple(x[orders[i % 3]] for i, x in enumerate(self.bounds))
    )

  def tile_states(self, q_len, kv_len, block_q, block_k):
    empty = np.zeros((-(-q_len // block_q), -(-kv_len // block_k)), bool)
    # NumPy arrays, unless the mask itself is an argument of a jitted function.
    full = ~empty
    for first, last, position in zip(*[iter(self.bounds)] * 3, strict=True):
      first_least, first_most = _range(first, block_q)
      last_least, last_most = _range(last, block_q)
      least, most = (x[None] for x in _range(position, block_k))
      # A tile is empty if the boxes around its windows and keys do not meet.
      empty = (
        empty | (most < first_least[:, None]) | (least > last_most[:, None])
      )
      full = (
        full & (first_most[:, None] <= least) & (most <= last_least[:, None])
      )
    return mask_base.states(empty, full)


def radial_tokens(frames: int, tokens: int) -> Mask:
  """Radial Attention's mask by its equation 4 (arXiv 2506.19852), exact.

  With d the distance of the frames of query and key, s = `tokens`, and
  b = 2^floor(log2 max(d, 1)), a query at place k of its frame sees the place l
  of the other if |k - l| + 1 <= s / b, or if ceil(b / s) divides d and k = l;
  and every query sees the first frame. The array has all pairs: for videos use
  `radial_blocks`.

  Args:
    frames: number of frames.
    tokens: tokens in a frame.
  """
  checks.whole("frames", frames, 1)
  checks.whole("tokens", tokens, 1)
  frame = np.arange(frames)
  distance = np.abs(frame[:, None] - frame[None, :])
  band = 2 ** (_bit_length(np.maximum(distance, 1)) - 1)
  place = np.arange(tokens)
  apart = np.abs(place[:, None] - place[None, :])
  # [frame, frame, place, place]
  band = band[:, :, None, None]
  near = (band <= tokens) & ((apart + 1) * band <= tokens)
  kept = distance[:, :, None, None] % -(-band // tokens) == 0
  seen = near | (kept & (apart == 0))
  seen[:, 0] = True
  seen = seen.transpose(0, 2, 1, 3).reshape(frames * tokens, frames * tokens)
  return mask_base.Dense(Operand(seen, "qk"))


def radial_blocks(
  frames: int,
  tokens: int,
  *,
  decay: float = 1.0,
  sink: bool = True,
  text_tokens: int = 0,
  block_size: int = 128,
  dense_width: int = 128,
) -> Mask:
  """Radial Attention's block mask as its released code runs it.

  The band of visible places halves when the distance of two frames doubles,
  down to one block; beyond, whole pairs of frames are left out (arXiv
  2506.19852; mit-han-lab/radial-attention, `gen_log_mask_shrinked`). A block is
  kept where more than 0.6 of its non-empty columns are more than a third full.
  Blocks with tokens that are of no video are visible, and so is the last one if
  it is not whole, where the released code drops its tokens.

  Args:
    frames: number of latent frames.
    tokens: tokens in a frame.
    decay: factor of the width of the band; not of the distance from which
      pairs of frames are left out.
    sink: whether all tokens see all of the first frame.
    text_tokens: tokens after the video that see and are seen by all.
    block_size: side of a block.
    dense_width: the width of a band, without `decay`, below which pairs of
      frames are left out. The released code has 128 whatever its block size;
      with frames of few tokens it would leave out almost all.
  """
  checks.whole("frames", frames, 1)
  checks.whole("tokens", tokens, 1)
  checks.number("decay", decay, above=0.0)
  checks.flag("sink", sink)
  checks.whole("text_tokens", text_tokens, 0)
  checks.whole("block_size", block_size, 1)
  checks.whole("dense_width", dense_width, 1)
  video = frames * tokens
  blocks = -(-(video + text_tokens) // block_size)
  table = np.zeros((blocks, blocks), bool)
  for i in range(frames):
    for j in range(frames):
      part = _frame_pair_blocks(
        0 if sink and j == 0 else abs(i - j),
        tokens,
        decay,
        i * tokens % block_size,
        j * tokens % block_size,
        block_size,
        dense_width,
      )
      if part is None:
        continue
      row, column = i * tokens // block_size, j * tokens // block_size
      part = part[: blocks - row, : blocks - column]
      table[row : row + part.shape[0], column : column + part.shape[1]] |= part
  table[video // block_size :] = True
  table[:, video // block_size :] = True
  return Blocks(table[None, None], block_size, block_size)


# Few distances and few offsets make up the many pairs of frames.
@functools.lru_cache(maxsize=256)
def _frame_pair_blocks(
  distance: int,
  tokens: int,
  decay: float,
  row: int,
  column: int,
  block_size: int,
  dense_width: int,
) -> np.ndarray | None:
  """Returns which blocks two frames see of each other, None for none.

  `row` and `column` say where in a block the first tokens of the frames lie.
  """
  place = np.arange(tokens)
  apart = np.abs(place[:, None] - place[None, :])
  seen = np.ones((tokens, tokens), bool)
  if distance > 1:
    width = 2 ** tokens.bit_length() / 2 ** distance.bit_length()
    if width < dense_width and distance % int(dense_width / width):
      return None
    seen = apart <= max(width * decay, block_size)
  length = -(-tokens // block_size) * block_size
  rows, columns = ((x + length) // block_size for x in (row, column))
  canvas = np.zeros((rows * block_size, columns * block_size), bool)
  part = canvas[row : row + tokens, column : column + tokens]
  part[...] = seen[: part.shape[0], : part.shape[1]]
  # [row block, column block, column]: the share of its rows that are set.
  density = canvas.reshape(rows, block_size, columns, block_size).mean(axis=1)
  filled = (density > 0).sum(axis=-1)
  high = (density > 1 / 3).sum(axis=-1)
  return high / (filled + 1e-9) > 0.6


def _bit_length(x: np.ndarray) -> np.ndarray:
  return np.frexp(x)[1]


def _range(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the least and the largest of each `block` of [length]."""
  library = np if isinstance(x, np.ndarray) else jnp
  x = library.pad(x, (0, -len(x) % block), mode="edge").reshape(-1, block)
  return x.min(axis=-1), x.max(axis=-1)
