"""Orders of the tokens of a grid in which a window is a run of tokens.

An order is an int32 array: its entry n is the number, in row-major order of the
grid, of the token that comes at place n. So `x[:, order]` brings tokens into
the order, `y[:, inverse(order)]` brings them back, and a mask P M P^T is
`mask.reordered(order)`. Attention depends on no order; how many tiles of scores
a mask leaves empty does (Scale-DiT, arXiv 2510.16325).
"""

import math
from collections.abc import Sequence

import numpy as np

from attention import checks


def windows(shape: Sequence[int], *sizes: Sequence[int]) -> np.ndarray:
  """Returns windows in row-major order, and row-major order in each of them.

  Args:
    shape: the sides of the grid.
    *sizes: the sides of a window; if more are given, those of the windows that
      each window is made of in turn.

  Raises:
    ValueError: if the sides of a window do not divide those of what it is in.
  """
  numbers = np.arange(_tokens(shape), dtype=np.int32).reshape(1, *shape)
  for size in sizes:
    numbers = _cut(numbers, size)
  return numbers.reshape(-1)


def hilbert_windows(shape: Sequence[int], size: Sequence[int]) -> np.ndarray:
  """Returns windows in row-major order, and Hilbert's curve in each of them.

  In a window whose sides are not one power of two the curve is that of the
  square around it, without what is not in the window.

  Args:
    shape: height and width of the grid.
    size: height and width of a window.

  Raises:
    ValueError: if the grid has not two axes or the windows do not divide it.
  """
  if len(shape) != 2:
    raise ValueError(
      f"shape is {tuple(shape)}; Hilbert's curve needs height and width"
    )
  numbers = np.arange(_tokens(shape), dtype=np.int32).reshape(1, *shape)
  numbers = _cut(numbers, size)
  side = 1 << (max(size) - 1).bit_length()
  along = np.argsort(hilbert_index(*np.indices(size), side).reshape(-1))
  return numbers.reshape(len(numbers), -1)[:, along].reshape(-1)


def hilbert_index(x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
  """Returns how far along Hilbert's curve the cells (x, y) of a square lie.

  The iterative form that Scale-DiT's repository uses, which turns a quadrant by
  its own side and not by that of the square. Consecutive cells are neighbours.

  Args:
    x: integers from 0 to `side` - 1.
    y: likewise.
    side: of the square, a power of two.

  Raises:
    ValueError: if `side` is no power of two.
  """
  checks.whole("side", side, 1)
  if side & (side - 1):
    raise ValueError(f"side is {side}; it must be a power of two")
  x, y = (np.array(place, np.int64) for place in (x, y))
  distance = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.int64)
  half = side // 2
  while half:
    right, up = (x & half) > 0, (y & half) > 0
    distance += half * half * ((3 * right) ^ up)
    # A negative number has the bits of the quadrant turned around.
    flipped = right & ~up
    x, y = (np.where(flipped, half - 1 - place, place) for place in (x, y))
    x, y = np.where(up, x, y), np.where(up, y, x)
    half //= 2
  return distance


def inverse(order: np.ndarray) -> np.ndarray:
  """Returns the order that takes tokens back.

  Raises:
    ValueError: if `order` has not each of its places once.
  """
  order = np.asarray(order)
  back = np.full(order.shape, -1, np.int32)
  if order.ndim == 1 and np.issubdtype(order.dtype, np.integer):
    inside = (order >= 0) & (order < len(order))
    back[order[inside]] = np.flatnonzero(inside)
  if order.ndim != 1 or (back < 0).any():
    raise ValueError(
      f"order is an array of {order.dtype}, of shape {order.shape}; it must "
      "have each number below its length once"
    )
  return back


def joined(*orders: np.ndarray | int) -> np.ndarray:
  """Returns the order of several groups of tokens, one after the other.

  Args:
    *orders: the order within each group, or its number of tokens where it
      stays as it is.
  """
  parts, first = [], 0
  for order in orders:
    part = np.arange(order) if isinstance(order, int) else np.asarray(order)
    parts.append(first + part)
    first += len(part)
  return np.concatenate(parts).astype(np.int32)


def _tokens(shape: Sequence[int]) -> int:
  for side in shape:
    checks.whole("a side of shape", side, 1)
  return math.prod(shape)


def _cut(numbers: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Cuts [windows, *sides] into [more windows, *size], in row-major order."""
  sides = numbers.shape[1:]
  for part in size:
    checks.whole("a side of a window", part, 1)
  if len(size) != len(sides) or any(
    side % part for side, part in zip(sides, size, strict=True)
  ):
    raise ValueError(
      f"a window is {tuple(size)}; the sides of a window in {tuple(sides)} "
      "must divide them, one for each"
    )
  # [windows, n, size, n, size, ...] -> [windows, n, n, ..., size, size, ...]
  apart = [
    x
    for side, part in zip(sides, size, strict=True)
    for x in (side // part, part)
  ]
  axes = len(sides)
  order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2))
  cut = numbers.reshape(len(numbers), *apart).transpose(order)
  return cut.reshape(-1, *size)
