"""Tiles of an image that a network restores piece by piece."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
  """What a tile is of one side of an image.

  Attributes:
    start: its first pixel.
    stop: the one after its last.
    keep_start: the first pixel that is taken from this tile.
    keep_stop: the one after the last.
  """

  start: int
  stop: int
  keep_start: int
  keep_stop: int


def spans(side: int, tile: int, overlap: int, multiple: int = 1) -> list[Span]:
  """Cuts one side of an image into equal parts that overlap.

  All are `tile` long: the last one is moved back to end where the image does,
  and overlaps more, so that a remainder of whatever width, also one thinner
  than the overlap, is seen with as much around it as all else. Each pixel is
  taken from one tile. Neighbours meet in the middle of what they share, so the
  pixels that are kept have at least overlap // 2 of their tile around them,
  or the border of the image.

  Args:
    side: of the image, in pixels.
    tile: of a tile; if it is not less than `side`, there is one, `side` long.
    overlap: the fewest pixels that neighbours share.
    multiple: of which tiles begin at one, so that a network's windows lie as
      in the whole image. It divides `side` and `tile`.

  Raises:
    ValueError: if tiles would not go on.
  """
  check(tile, overlap, multiple)
  if tile >= side:
    return [Span(0, side, 0, side)]
  step = _step(tile, overlap, multiple)
  starts = [*range(0, side - tile, step), side - tile]
  meet = [
    (left + tile + right) // 2 for left, right in itertools.pairwise(starts)
  ]
  edges = itertools.pairwise([0, *meet, side])
  return [
    Span(start, start + tile, first, last)
    for start, (first, last) in zip(starts, edges, strict=True)
  ]


def check(tile: int, overlap: int, multiple: int = 1) -> None:
  """Raises ValueError for tiles that do not go on; see `spans`."""
  if tile < 1 or tile % multiple:
    raise ValueError(
      f"tile={tile} must be a multiple of {multiple} pixels, as the network "
      "needs, and at least that; or 0 for the whole image at once."
    )
  if overlap < 0 or _step(tile, overlap, multiple) < 1:
    raise ValueError(
      f"overlap={overlap} must be from 0 to {tile - multiple}, so that tiles "
      f"of tile={tile} pixels go on."
    )


def grid(
  shape: Sequence[int], tile: int, overlap: int, multiple: int = 1
) -> list[tuple[Span, Span]]:
  """The tiles of an image, its rows and columns of each.

  Args:
    shape: height and width of the image, multiples of `multiple`.
    tile: as for `spans`; likewise what follows.
    overlap: of neighbours.
    multiple: of which tiles begin at one.
  """
  rows, columns = (spans(n, tile, overlap, multiple) for n in shape[:2])
  return [(row, column) for row in rows for column in columns]


def cut(
  image: np.ndarray, places: Sequence[tuple[Span, Span]]
) -> Iterator[np.ndarray]:
  """Yields the tiles [tile, tile, channels] at these places."""
  for row, column in places:
    yield image[row.start : row.stop, column.start : column.stop]


def put(
  whole: np.ndarray, tile: np.ndarray, place: tuple[Span, Span], scale: int
) -> None:
  """Writes what is kept of a restored tile into the whole image.

  Args:
    whole: [scale * height, scale * width, channels], changed in place.
    tile: as it was restored, `scale` times the sides that it had.
    place: where it was cut.
    scale: pixels for one.
  """
  into, of = zip(*(_kept(span, scale) for span in place), strict=True)
  whole[into] = tile[of]


def _kept(span: Span, scale: int) -> tuple[slice, slice]:
  first, last = scale * span.keep_start, scale * span.keep_stop
  start = scale * span.start
  return slice(first, last), slice(first - start, last - start)


def _step(tile: int, overlap: int, multiple: int) -> int:
  return (tile - overlap) // multiple * multiple
