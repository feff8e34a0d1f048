"""Orders of the tokens of a grid in which a window is a run of tokens.

An order is an int32 array: its entry n is the number, in row-major order of the
grid, of the token that comes at place n. So `x[:, order]`, or `reordered(x,
order)`, brings tokens into the order, `reordered(y, inverse(order))` brings
them back, and a mask P M P^T is `mask.reordered(order)`. Attention depends on
no order; how many tiles of scores a mask leaves empty does (Scale-DiT, arXiv
2510.16325).

An order of each row of the batch and each head, as of
`attention.cluster_orders`, is [batch, heads, tokens].
"""

import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

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
  tokens = _tokens(shape)
  if len(shape) != 2:
    raise ValueError(
      f"shape is {tuple(shape)}; Hilbert's curve needs height and width"
    )
  numbers = np.arange(tokens, dtype=np.int32).reshape(1, *shape)
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


def gilbert(shape: Sequence[int]) -> np.ndarray:
  """Returns the generalised Hilbert curve of a grid with sides of any number.

  J. Cerveny's "gilbert" curve, as PSA (arXiv 2512.04025) has it: it begins at
  the first token and runs along the longest side, of equal ones along the last.
  Consecutive tokens are neighbours where sides are even; odd ones may need
  diagonal steps. A grid of two axes is one of three with one frame.

  Args:
    shape: sides of the grid, at most three.

  Raises:
    ValueError: if the grid has more axes.
  """
  _tokens(shape)
  if not 1 <= len(shape) <= 3:
    raise ValueError(
      f"shape is {tuple(shape)}; the curve is of grids of one to three axes"
    )
  sides = (1,) * (3 - len(shape)) + tuple(map(int, shape))
  return _gilbert(sides).copy()


# Some tenths of a second for the tokens of a video.
@functools.lru_cache(maxsize=16)
def _gilbert(sides: tuple[int, int, int]) -> np.ndarray:
  """Returns the order of a grid of three axes."""
  # The longest first, and then the last axis before those in front of it.
  axes = sorted((2, 1, 0), key=lambda axis: -sides[axis])
  axes = axes[:1] + sorted(axes[1:], reverse=True)
  cells = np.array([*_curve((0, 0, 0), *((a, sides[a]) for a in axes))])
  return np.ravel_multi_index(cells.T, sides).astype(np.int32)


# An edge of a box: its axis, and how many cells it has, negative if backward.
_Edge = tuple[int, int]
_Cell = tuple[int, int, int]


def _curve(cell: _Cell, a: _Edge, b: _Edge, c: _Edge) -> Iterator[_Cell]:
  """Yields the cells of a box, from a corner to the one along edge `a`.

  The box is cut into two, three or five, each of which begins a step from where
  the one before ends.
  """
  lengths = sorted(abs(length) for _, length in (a, b, c))
  if not lengths[0]:
    return
  if lengths[1] == 1:
    axis, length = max((a, b, c), key=lambda edge: abs(edge[1]))
    for n in range(abs(length)):
      yield _moved(cell, (axis, n if length > 0 else -n))
    return
  begun = False
  for step, first, second, third in _parts(a, b, c):
    # Half of an edge of one cell has none, and there is no step behind it.
    if begun:
      cell = _moved(cell, step)
    yield from _curve(cell, first, second, third)
    cell = _moved(cell, _less(first))
    begun = first[1] != 0


def _parts(a: _Edge, b: _Edge, c: _Edge) -> list[tuple[_Edge, ...]]:
  """Returns the step to each part of a box and its three edges.

  There is none to the first.
  """
  (a1, a2), (b1, b2), (c1, c2) = (_halves(edge) for edge in (a, b, c))
  w, h, d = (abs(length) for _, length in (a, b, c))
  on, up, down = _unit(a), _unit(b), _back(_unit(b))
  if 2 * w > 3 * h and 2 * w > 3 * d:
    return [(on, a1, b, c), (on, a2, b, c)]
  if 3 * h > 4 * d:
    return [
      (up, b1, c, a1),
      (up, a, b2, c),
      (down, _back(b1), c, _back(a2)),
    ]
  if 3 * d > 4 * h:
    return [
      (_unit(c), c1, a1, b),
      (_unit(c), a, b, c2),
      (_back(_unit(c)), _back(c1), _back(a2), b),
    ]
  return [
    (up, b1, c1, a1),
    (up, c, a1, b2),
    (down, a, _back(b1), _back(c2)),
    (up, _back(c), _back(a2), b2),
    (down, _back(b1), c1, _back(a2)),
  ]


def _halves(edge: _Edge) -> tuple[_Edge, _Edge]:
  """Cuts an edge, so that the first part is even if it is not all."""
  axis, length = edge
  half = length // 2
  if half % 2 and abs(length) > 2:
    half += 1 if length > 0 else -1
  return (axis, half), (axis, length - half)


def _unit(edge: _Edge) -> _Edge:
  axis, length = edge
  return axis, (length > 0) - (length < 0)


def _back(edge: _Edge) -> _Edge:
  return edge[0], -edge[1]


def _less(edge: _Edge) -> _Edge:
  """The way from the first cell of an edge to its last."""
  return edge[0], edge[1] - _unit(edge)[1]


def _moved(cell: _Cell, way: _Edge) -> _Cell:
  moved = list(cell)
  moved[way[0]] += way[1]
  return tuple(moved)


def reordered(
  x: Float[Array, "batch tokens heads dim"],
  order: Int[Array | np.ndarray, "*batch_heads tokens"],
) -> Float[Array, "batch tokens heads dim"]:
  """Returns tokens in an order, [tokens] of all or [batch, heads, tokens]."""
  if order.ndim == 1:
    return x[:, order]
  return jnp.take_along_axis(x, order.swapaxes(1, 2)[..., None], axis=1)


def inverse(order: np.ndarray | Array) -> np.ndarray | Array:
  """Returns the order that takes tokens back.

  Args:
    order: [..., tokens]. NumPy's is checked, and gives NumPy's.

  Raises:
    ValueError: if `order` has not each of its places once.
  """
  if isinstance(order, jax.Array):
    return jnp.argsort(order, axis=-1).astype(jnp.int32)
  order = np.asarray(order)
  if (
    not order.ndim
    or not np.issubdtype(order.dtype, np.integer)
    or (np.sort(order, axis=-1) != np.arange(order.shape[-1])).any()
  ):
    raise ValueError(
      f"order is an array of {order.dtype}, of shape {order.shape}; it must "
      "have each number below its length once"
    )
  return np.argsort(order, axis=-1).astype(np.int32)


def joined(*orders: np.ndarray | int) -> np.ndarray:
  """Returns the order of several groups of tokens, one after the other.

  Args:
    *orders: the order within each group, or its number of tokens where it
      stays as it is.

  Raises:
    ValueError: for what is neither.
  """
  parts, first = [], 0
  for order in orders:
    if np.ndim(order):
      # Where each is once: an order has one back.
      inverse(order)
      part = np.asarray(order)
    else:
      checks.whole("a number of tokens", order, 0)
      part = np.arange(order)
    parts.append(first + part)
    first += len(part)
  return np.concatenate([np.arange(0), *parts]).astype(np.int32)


def _tokens(shape: Sequence[int]) -> int:
  checks.wholes("shape", shape, 1)
  return math.prod(shape)


def _cut(numbers: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Cuts [windows, *sides] into [more windows, *size], in row-major order."""
  sides = numbers.shape[1:]
  checks.wholes("a window", size, 1)
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
