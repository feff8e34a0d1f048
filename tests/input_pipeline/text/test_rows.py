import itertools
import json

import numpy as np
import pytest

from input_pipeline import text

from .conftest import DOCUMENTS


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def train(config, batch_size=4, seed=0, rows=None):
  return text.train_iterator(
    config, seed=seed, global_batch_size=batch_size, rows=rows
  )


def join(batches):
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def epoch(config, seed=0):
  """All rows of the first epoch."""
  count = text.num_train_examples(config)
  return join(take(train(config, batch_size=1, seed=seed), count))


def segments(rows):
  """(inputs, targets, positions) of each segment, bytes as bytes."""
  for row in range(len(rows["tokens"])):
    numbers = rows["segments"][row]
    assert (np.diff(np.trim_zeros(numbers)) >= 0).all()
    for number in range(1, numbers.max() + 1):
      here = numbers == number
      assert here.any()
      yield tuple(
        rows[k][row][here].tolist() for k in ("tokens", "targets", "positions")
      )


def test_documents_are_packed_whole_and_long_ones_in_pieces(lines_config):
  rows = epoch(lines_config)
  found = []
  for tokens, targets, positions in segments(rows):
    assert positions == list(range(len(tokens)))
    assert tokens[1:] == targets[:-1]
    found.append((tokens[0], targets))
  expected = []
  for document in DOCUMENTS:
    whole = [256, *document.encode(), 256]
    for start in range(0, len(whole) - 1, 16):
      expected.append((whole[start], whole[start + 1 : start + 17]))
  assert sorted(found) == sorted(expected)
  padding = rows["segments"] == 0
  np.testing.assert_array_equal(rows["weights"], ~padding)
  assert (rows["positions"][padding] == -1).all()
  assert padding.mean() < 0.1
  assert {k: (v.dtype.name, v.shape[1]) for k, v in rows.items()} == {
    "tokens": ("int32", 16),
    "targets": ("int32", 16),
    "weights": ("float32", 16),
    "segments": ("int32", 16),
    "positions": ("int32", 16),
  }


def test_a_stream_runs_through_documents(lines_config):
  lines_config.packing = "stream"
  rows = epoch(lines_config)
  whole = [256]
  for document in DOCUMENTS:
    whole += [*document.encode(), 256]
  pieces = sorted(
    (whole[i : i + 16][: len(whole) - 1 - i], whole[i + 1 : i + 17])
    for i in range(0, len(whole) - 1, 16)
  )
  assert sorted((t, y) for t, y, _ in segments(rows)) == pieces
  lines_config.end_of_text = False
  rows = epoch(lines_config)
  assert 256 not in rows["tokens"]


def test_random_offsets_reach_all_places_alike(lines_config):
  lines_config.update(packing="stream", random_offsets=True, length=8)
  lines_config.end_of_text = False
  whole = "".join(DOCUMENTS).encode()
  places = len(whole) - 8
  rows = join(take(train(lines_config, batch_size=100), 40))
  windows = {whole[i : i + 9]: i for i in range(places)}
  counts = np.zeros(places)
  for tokens, targets in zip(rows["tokens"], rows["targets"], strict=True):
    assert tokens[1:].tolist() == targets[:-1].tolist()
    window = bytes(tokens.tolist()) + bytes([targets[-1]])
    counts[windows[window]] += 1
  # Windows that occur twice count at the last place.
  last = np.isin(np.arange(places), list(windows.values()))
  assert last[[0, -1]].all()
  assert counts[last].min() > 0
  assert rows["weights"].all()
  assert text.num_train_examples(lines_config) == -(-(len(whole) - 1) // 8)
  lines_config.length = len(whole)
  with pytest.raises(ValueError, match="random offsets must be shorter"):
    train(lines_config)


def keys(batches):
  return [row.tobytes() for row in join(batches)["tokens"]]


@pytest.mark.parametrize("random_offsets", [False, True])
def test_state_is_one_number(lines_config, random_offsets):
  packing = "stream" if random_offsets else "documents"
  lines_config.update(packing=packing, random_offsets=random_offsets)
  one_by_one = keys(take(train(lines_config, batch_size=1), 60))
  iterator = train(lines_config, batch_size=4)
  assert keys(take(iterator, 5)) == one_by_one[:20]
  state = json.loads(json.dumps(iterator.get_state()))
  assert state == {"next_example": 20}
  # Two processes go on with another batch size.
  parts = [train(lines_config, 10, rows=r) for r in (range(4), range(4, 10))]
  for part in parts:
    part.set_state(state)
  batches = [take(part, 4) for part in parts]
  joined = [join(pair) for pair in zip(*batches, strict=True)]
  assert keys(joined) == one_by_one[20:60]
  assert parts[0].get_state() == {"next_example": 60}


def test_epochs_and_seeds_have_their_own_order(lines_config):
  count = text.num_train_examples(lines_config)
  rows = keys(take(train(lines_config, batch_size=1), 2 * count))
  first, second = rows[:count], rows[count:]
  assert sorted(first) == sorted(second)
  other = keys(take(train(lines_config, batch_size=1, seed=1), count))
  assert first != second
  assert first != other
  assert second != other
  assert rows == keys(take(train(lines_config, batch_size=1), 2 * count))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(rows=range(3, 6)), "rows are range"),
    (dict(batch_size=0), "batch size 0"),
    (dict(seed=-1), "seed is -1"),
  ],
)
def test_faults(lines_config, options, message):
  with pytest.raises(ValueError, match=message):
    train(lines_config, **options)


def test_text_of_one_token_is_refused(config, write_lines):
  path = write_lines(["q"])
  config.update(files=path, eval_files=path, format="jsonl")
  assert text.num_train_examples(config) == 1
  config.end_of_text = False
  with pytest.raises(ValueError, match="to evaluate has no token that another"):
    text.dataset_info(config)
  with pytest.raises(ValueError, match="to train on has no token"):
    train(config)
