"""Which tokens stand in which row: cutting into windows, and packing them.

A sequence of n tokens has n - 1 targets, each predicted from those before it. A
*span* is a run of inputs with the targets one place further on.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Spans:
  """Runs of one array of tokens.

  Attributes:
    starts: int64 `[spans]`, where the first input is.
    sizes: int64 `[spans]`, how many inputs, and targets, there are.
    contexts: int64 `[spans]`, how many of the first targets another span has
      and this one does not count.
  """

  starts: np.ndarray
  sizes: np.ndarray
  contexts: np.ndarray


def cut(
  starts: np.ndarray, sizes: np.ndarray, length: int, stride: int
) -> Spans:
  """Windows of at most `length` over sequences: each target counts in one.

  The first window of a sequence counts all its targets, each further one begins
  `stride` later and counts the targets that are new.

  Args:
    starts: int64 `[sequences]`, where each begins.
    sizes: int64 `[sequences]`, tokens in each.
    length: the most inputs of a window.
    stride: from 1 to `length`; `length` leaves no context.
  """
  targets = sizes - 1
  further = -(-np.maximum(targets - length, 0) // stride)
  counts = np.where(targets > 0, 1 + further, 0)
  sequence = np.repeat(np.arange(len(sizes)), counts)
  # Number of the window in its sequence.
  number = np.arange(len(sequence)) - np.repeat(
    np.cumsum(counts) - counts, counts
  )
  begins = number * stride
  return Spans(
    starts=starts[sequence] + begins,
    sizes=np.minimum(length, targets[sequence] - begins),
    contexts=np.where(number == 0, 0, length - stride),
  )


def pack(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Puts spans into rows of `length`, where they leave little room.

  Best fit of the longest first: a span goes to the fullest row that has room
  for it. Johnson (1973) has the bound, 11/9 of the fewest rows possible.

  Args:
    sizes: `[spans]`, from 1 to `length`.
    length: of a row.

  Returns:
    (order, bounds): row r has the spans `order[bounds[r]:bounds[r + 1]]`.
  """
  row_of = np.empty(len(sizes), np.int64)
  rows_by_room = [[] for _ in range(length + 1)]
  rooms = 0  # Bit r is set where a row has room for just r more.
  num_rows = 0
  for span in np.argsort(-sizes, kind="stable").tolist():
    size = int(sizes[span])
    fitting = rooms >> size
    if fitting:
      room = size + (fitting & -fitting).bit_length() - 1
      row = rows_by_room[room].pop()
      if not rows_by_room[room]:
        rooms &= ~(1 << room)
    else:
      room, row = length, num_rows
      num_rows += 1
    row_of[span] = row
    if room > size:
      rows_by_room[room - size].append(row)
      rooms |= 1 << (room - size)
  counts = np.bincount(row_of, minlength=num_rows)
  bounds = np.concatenate([[0], np.cumsum(counts)])
  return np.argsort(row_of, kind="stable"), bounds
