"""Near and far against a restatement of their rules."""

import numpy as np
import pytest

from input_pipeline.sequences import sources


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"length": 31, "lead": 3, "pairs": 6, "queries": 2, "keys": 6},
    {"length": 8, "lead": 2, "pairs": 1, "queries": 1, "fillers": 1},
  ],
)
def test_labels_are_the_token_before_or_the_value_of_the_key(fields):
  source = sources.create("near_and_far", fields)
  rng = np.random.default_rng(0)
  groups, places = [], set()
  for _ in range(200):
    example = source.example(rng, "train")
    tokens, targets = example["tokens"], example["targets"]
    assert tokens.shape == targets.shape == (source.length,)
    assert tokens[0] == example["group"]
    groups.append(int(tokens[0]))
    assert 2 <= tokens[1:].min() <= tokens.max() < source.vocabulary_size
    end = source.length - source.queries
    np.testing.assert_array_equal(
      example["weights"], np.arange(source.length) >= end
    )
    is_key = (tokens >= 2) & (tokens < 2 + source.keys)
    begin = np.flatnonzero(is_key[:end])
    assert len(begin) == source.pairs == len(set(tokens[begin]))
    assert source.lead <= begin.min()
    assert begin.max() + 1 < source.length // 2
    places |= set(begin.tolist())
    values = tokens[begin + 1] - 2 - source.keys
    assert 0 <= values.min() <= values.max() < source.values
    value_of = dict(zip(tokens[begin], tokens[begin + 1], strict=True))
    for place in range(end, source.length):
      if tokens[0]:
        assert targets[place] == value_of[tokens[place]]
      else:
        assert targets[place] == tokens[place - 1]
        assert tokens[place] >= 2 + source.keys + source.values
    assert not tokens[0] or len(set(tokens[end:])) == source.queries
  assert 70 < sum(groups) < 130
  assert places == set(range(source.lead, source.length // 2 - 1))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"pairs": 3}, "pairs is 3; it must be at least queries=4 and at most 12"),
    ({"pairs": 13}, "pairs is 13.*at most 12.*keys=16.*lead=8.*length=64"),
    ({"keys": 5, "pairs": 6}, "at most 5"),
    ({"lead": 0}, "lead is 0, but it must be an int of at least 1"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    sources.create("near_and_far", fields)
