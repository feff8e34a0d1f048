"""Multi-query associative recall against a restatement of its rules."""

import collections

import numpy as np
import pytest

from input_pipeline.sequences import sources
from input_pipeline.sequences.mqar import MultiQueryRecall


def examples(source, number, seed=0):
  rng = np.random.default_rng(seed)
  return [source.example(rng, "train") for _ in range(number)]


@pytest.mark.parametrize(
  "fields",
  [
    {"length": 64, "pairs": (4, 16, 7), "vocabulary_size": 8192},
    {"length": 12, "pairs": (3,), "vocabulary_size": 8, "power": 1.0},
    {"length": 20, "pairs": (1, 5), "vocabulary_size": 13},
    {"length": 16, "pairs": (2,), "random_non_queries": False},
  ],
)
def test_each_key_is_asked_for_once_and_its_value_is_the_label(fields):
  source = MultiQueryRecall(**fields)
  half = source.vocabulary_size // 2
  for example in examples(source, 60):
    tokens, targets = example["tokens"], example["targets"]
    weights, group = example["weights"], example["group"]
    assert tokens.shape == targets.shape == weights.shape == (source.length,)
    assert tokens.dtype == targets.dtype == group.dtype == np.int32
    assert weights.dtype == np.float32
    n = source.pairs[group]
    assert source.groups[group] == f"{n}_pairs"
    keys, values = tokens[: 2 * n : 2], tokens[1 : 2 * n : 2]
    assert len(set(keys)) == len(set(values)) == n
    assert keys.min() >= 1
    assert keys.max() < half <= values.min()
    assert values.max() < source.vocabulary_size
    asked = np.flatnonzero(weights)
    assert set(weights[asked]) == {1}
    assert sorted(tokens[asked]) == sorted(keys)
    assert ((asked - 2 * n) % 2 == 0).all()
    assert asked.min() >= 2 * n
    of = dict(zip(keys, values, strict=True))
    assert targets[asked].tolist() == [of[key] for key in tokens[asked]]
    assert (np.delete(targets, asked) == 0).all()
    rest = np.delete(tokens, [*range(2 * n), *asked])
    if source.random_non_queries:
      assert 0 <= rest.min() <= rest.max() < source.vocabulary_size
    else:
      assert (rest == 0).all()


@pytest.mark.parametrize("power", [0.01, 1.0, 0.4])
def test_gaps_have_a_power_law_without_replacement(power):
  """By a race of exponentials, which is drawing one after another."""
  length, n, number = 24, 3, 4000
  source = MultiQueryRecall(length, (n,), 32, power)
  asked = sum(x["weights"] for x in examples(source, number))[2 * n :: 2]
  space = (length - 2 * n) // 2
  rates = power * np.arange(1, space + 1) ** (power - 1)
  times = np.random.default_rng(7).exponential(size=(number, space)) / rates
  first = np.argsort(times, axis=1)[:, :n]
  expected = np.bincount(first.ravel(), minlength=space)
  assert asked.sum() == expected.sum() == number * n
  # Five deviations of the difference of two frequencies.
  deviation = np.sqrt(2 * number * 0.25)
  np.testing.assert_allclose(asked, expected, atol=5 * deviation)
  if power == 0.01:
    assert asked[0] > 2.5 * asked[5]


def test_keys_values_and_fillers_are_uniform():
  source = MultiQueryRecall(length=32, pairs=(2,), vocabulary_size=16)
  made = examples(source, 3000, seed=1)
  keys = np.bincount([t for x in made for t in x["tokens"][:4:2]], minlength=16)
  values = np.bincount(
    [t for x in made for t in x["tokens"][1:4:2]], minlength=16
  )
  assert keys[0] == keys[8:].sum() == values[:8].sum() == 0
  np.testing.assert_allclose(keys[1:8], 6000 / 7, atol=5 * 30)
  np.testing.assert_allclose(values[8:], 6000 / 8, atol=5 * 28)
  rest = np.concatenate([x["tokens"][4:][x["weights"][4:] == 0] for x in made])
  counts = np.bincount(rest, minlength=16)
  np.testing.assert_allclose(counts, len(rest) / 16, rtol=0.1)
  # Which key has which value is independent.
  pairs = collections.Counter((x["tokens"][0], x["tokens"][1]) for x in made)
  assert len(pairs) == 7 * 8


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"length": 15}, "length is 15, but it must be even"),
    ({"length": 2}, "length is 2, but it must be an int of at least 4"),
    ({"pairs": (4, 17)}, r"pairs is \(4, 17\).*from 1 to 16.*4 n <= length=64"),
    ({"pairs": ()}, r"pairs is \(\)"),
    ({"vocabulary_size": 8}, r"pairs is \(4,\).*from 1 to 3.*= 3 keys"),
    ({"power": -1.0}, "power is -1.0"),
    (
      {"pear": (4,)},
      "option of the source 'mqar' 'pear'; did you mean power or pairs",
    ),
  ],
)
def test_options_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    sources.create("mqar", fields)
