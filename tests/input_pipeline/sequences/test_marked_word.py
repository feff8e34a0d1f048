"""The marked word against a restatement of its rules."""

import collections

import numpy as np
import pytest

from input_pipeline.sequences import sources


@pytest.mark.parametrize(
  "fields",
  [
    {"segments": True},
    {"length": 9, "sentences": 3, "names": 7, "vocabulary_size": 9},
  ],
)
def test_the_label_is_the_name_of_the_sentence_with_the_mark(fields):
  source = sources.create("marked_word", fields)
  rng = np.random.default_rng(0)
  labels, lengths = collections.Counter(), collections.Counter()
  for _ in range(400):
    example = source.example(rng, "train")
    tokens = example["tokens"]
    assert tokens.shape == (source.length,)
    assert {x.dtype.name for x in example.values()} <= {"int32", "float32"}
    assert example["weights"] == [1]
    starts = np.flatnonzero((tokens > 0) & (tokens <= source.names))
    assert len(starts) == len(set(tokens[starts])) == source.sentences
    assert starts[0] == 0
    ends = [*starts[1:], source.length]
    sizes = np.subtract(ends, starts)
    assert sizes.min() >= 3
    lengths.update(sizes.tolist())
    assert 0 <= tokens.min() <= tokens.max() < source.vocabulary_size
    (mark,) = np.flatnonzero(tokens == 0)
    sentence = (starts <= mark).sum() - 1
    assert example["targets"] == [tokens[starts[sentence]] - 1]
    labels.update(example["targets"].tolist())
    if source.segments:
      expected = (starts[:, None] <= np.arange(source.length)).sum(0) - 1
      np.testing.assert_array_equal(example["segments"], expected)
    else:
      assert "segments" not in example
  assert set(labels) == set(range(source.classes))
  assert min(labels.values()) > 0.5 * 400 / source.classes
  if source.length > 3 * source.sentences:
    assert len(lengths) > 8


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"sentences": 1}, "sentences is 1"),
    ({"names": 7}, "names is 7"),
    ({"length": 23}, "length is 23"),
    ({"vocabulary_size": 9}, "vocabulary_size is 9"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    sources.create("marked_word", fields)
