"""Near and far against a restatement of their rules."""

import numpy as np
import pytest

from input_pipeline.sequences import sources


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"length": 31, "lead": 3, "pairs": 6, "queries": 2, "keys": 6},
    {"length": 8, "lead": 1, "pairs": 1, "queries": 1, "fillers": 1},
  ],
)
def test_labels_are_the_token_before_or_the_value_of_the_key(fields):
  source = sources.create("near_and_far", fields)
  keys, values, fillers = source.keys, source.values, source.fillers
  # Where kinds of tokens end.
  ends = np.cumsum([2, fillers, keys, values, keys * values])
  assert ends[-1] == source.vocabulary_size == source.classes
  rng = np.random.default_rng(0)
  groups, places, asked, told = [], set(), set(), set()
  for _ in range(300):
    example = source.example(rng, "train")
    tokens, targets = example["tokens"], example["targets"]
    assert tokens.shape == targets.shape == (source.length,)
    assert tokens[0] == example["group"]
    groups.append(int(tokens[0]))
    kind = np.searchsorted(ends, tokens, side="right")
    end = source.length - source.queries
    np.testing.assert_array_equal(
      example["weights"], np.arange(source.length) >= end
    )
    pairs = np.flatnonzero(kind == 4)
    assert len(pairs) == source.pairs
    assert source.lead <= pairs.min() <= pairs.max() < source.length // 3
    places |= set(pairs.tolist())
    value_of = dict(divmod(x, values) for x in tokens[pairs] - ends[3])
    assert len(value_of) == source.pairs
    rest = np.delete(kind[1:end], pairs - 1)
    assert (rest == 1).all()
    for place in range(end, source.length):
      if tokens[0]:
        asked.add(int(tokens[place] - ends[1]))
        told.add(int(targets[place] - ends[2]))
        assert targets[place] - ends[2] == value_of[tokens[place] - ends[1]]
      else:
        assert targets[place] == tokens[place - 1]
        assert kind[place] == 1
  assert 110 < sum(groups) < 190
  assert places == set(range(source.lead, source.length // 3))
  assert asked == set(range(keys))
  assert told == set(range(values))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"pairs": 9}, "pairs is 9; it must be at most 8: there are keys=8"),
    ({"keys": 30, "pairs": 18}, "at most 17.*length=64 without lead=4"),
    ({"queries": 33}, "queries is 33; it must be at most 32, the half"),
    ({"lead": 0}, "lead is 0, but it must be an int of at least 1"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    sources.create("near_and_far", fields)
