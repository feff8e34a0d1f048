"""Rows of tokens by number, for training and for evaluation."""

import numpy as np

from input_pipeline.text import spans
from input_pipeline.text.corpus import Tokens

Row = dict[str, np.ndarray]


class SpanRows:
  """Row n has the n-th packed run of spans of a split.

  Attributes:
    num_rows: that there are.
  """

  def __init__(
    self, tokens: Tokens, length: int, stride: int, *, with_bytes: bool = False
  ):
    """Cuts and packs; reads no token.

    Args:
      tokens: of a split.
      length: tokens of a row.
      stride: targets from one window to the next, see `spans.cut`.
      with_bytes: whether rows have the bytes of their targets.
    """
    self._tokens, self._length = tokens, length
    self._with_bytes = with_bytes
    self._spans = spans.cut(tokens.starts, tokens.lengths, length, stride)
    self._order, self._bounds = spans.pack(self._spans.sizes, length)
    self.num_rows = len(self._bounds) - 1

  def read(self, row: int, rng: np.random.Generator | None = None) -> Row:
    """A row as `pipeline` describes it; after the last one, padding."""
    del rng
    result = blank(self._length)
    if self._with_bytes:
      result["bytes"] = np.zeros(self._length, np.float32)
    first = 0
    bounds = self._bounds[row : row + 2] if row < self.num_rows else (0, 0)
    for number, span in enumerate(self._order[slice(*bounds)], 1):
      place = slice(first, first + self._spans.sizes[span])
      fill(result, self._tokens, self._spans.starts[span], place, number)
      result["weights"][first : first + self._spans.contexts[span]] = 0
      first = place.stop
    return result


class RandomRows:
  """Rows that begin anywhere in a stream, all places alike.

  Attributes:
    num_rows: so many have as many tokens as the stream.
  """

  def __init__(self, tokens: Tokens, length: int):
    """Takes the tokens of one sequence.

    Raises:
      ValueError: if it has no row.
    """
    self._tokens, self._length = tokens, length
    self._places = len(tokens.ids) - length
    if self._places < 1:
      raise ValueError(
        f"length is {length}, but the text to train on has {len(tokens.ids)} "
        "tokens: rows at random offsets must be shorter."
      )
    self.num_rows = -(-(len(tokens.ids) - 1) // length)

  def read(self, row: int, rng: np.random.Generator) -> Row:
    """A row that the generator chooses, whatever its number."""
    del row
    result = blank(self._length)
    start = int(rng.integers(self._places))
    fill(result, self._tokens, start, slice(0, self._length), 1)
    return result


def blank(length: int) -> Row:
  """A row of padding, which has no weight and no position."""
  return {
    "tokens": np.zeros(length, np.int32),
    "targets": np.zeros(length, np.int32),
    "weights": np.zeros(length, np.float32),
    "segments": np.zeros(length, np.int32),
    "positions": np.full(length, -1, np.int32),
  }


def fill(
  row: Row, tokens: Tokens, start: int, place: slice, segment: int
) -> None:
  """Puts tokens from `start` on, and their targets, into a place of a row."""
  size = place.stop - place.start
  targets = slice(start + 1, start + size + 1)
  row["tokens"][place] = tokens.ids[start : start + size]
  row["targets"][place] = tokens.ids[targets]
  row["weights"][place] = 1
  row["segments"][place] = segment
  row["positions"][place] = np.arange(size)
  if "bytes" in row:
    row["bytes"][place] = tokens.sizes[targets]
