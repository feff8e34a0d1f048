import itertools

import numpy as np
import pytest

from input_pipeline.text import spans


def brute_force(length, stride, size):
  """Windows of a sequence as (first input, inputs, context)."""
  windows, counted = [], 0
  while counted < size - 1:
    begin = len(windows) * stride
    end = min(begin + length, size - 1)
    windows.append((begin, end - begin, counted - begin))
    counted = end
  return windows


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_count_each_target_once(stride):
  sizes = np.arange(0, 30)
  starts = np.arange(30) * 100
  found = spans.cut(starts, sizes, 8, stride)
  expected = [
    (start + begin, count, context)
    for start, size in zip(starts, sizes, strict=True)
    for begin, count, context in brute_force(8, stride, size)
  ]
  actual = zip(found.starts, found.sizes, found.contexts, strict=True)
  assert [tuple(map(int, span)) for span in actual] == expected
  assert (found.sizes - found.contexts).sum() == np.maximum(sizes - 1, 0).sum()


def test_rows_hold_each_span_once_and_are_full():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 65, 3000)
  order, bounds = spans.pack(sizes, 64)
  assert sorted(order.tolist()) == list(range(3000))
  filled = np.add.reduceat(sizes[order], bounds[:-1])
  assert bounds[-1] == 3000
  assert filled.max() == 64
  assert filled.sum() == sizes.sum()
  assert len(filled) <= 1.03 * sizes.sum() / 64


def test_spans_of_a_row_go_to_the_fullest_that_has_room():
  order, bounds = spans.pack(np.array([3, 7, 5, 3, 2]), 10)
  rows = [order[a:b].tolist() for a, b in itertools.pairwise(bounds)]
  assert rows == [[0, 1], [2, 3, 4]]
  order, bounds = spans.pack(np.array([], np.int64), 10)
  assert (len(order), bounds.tolist()) == (0, [0])
