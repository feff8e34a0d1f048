"""Contexts made longer, bins and parts of samples."""

import numpy as np
import pytest

from evaluation import long_context


def names(text):
  return {word for word in text.split() if word[0].isupper()}


def count(text):
  return len(text.split())


def test_padding_goes_between_and_shares_no_more_than_it_may():
  passages = ["Ada met Bob", "Bob left", "nobody knew"]
  padding = [
    *(f"Zoe{n} slept well" for n in range(6)),
    "Ada and Bob again",
    "Ada alone",
    "Cid came",
  ]
  places = set()
  for seed in range(30):
    context = long_context.extend(
      "Where is Cid",
      passages,
      padding,
      18,
      entities=names,
      count=count,
      rng=np.random.default_rng(seed),
      shared=1,
    )
    # Two entities are shared, one too many.
    assert "Ada and Bob again" not in context.passages
    assert [context.passages[n - 1] for n in context.own] == passages
    rest = [text for text in context.passages if text not in passages]
    assert len(rest) == len(set(rest)) == len(context.passages) - 3
    assert set(rest) < set(padding)
    # Nothing that is left would fit.
    total = sum(map(count, context.passages))
    left = set(padding) - set(rest) - {"Ada and Bob again"}
    assert total <= 18 < total + min(map(count, left))
    places.add(tuple(context.own))
  assert len(places) > 10
  context = long_context.extend(
    "Where is Cid",
    passages,
    padding,
    1000,
    entities=names,
    count=count,
    rng=np.random.default_rng(0),
    shared=0,
  )
  # The question's entities count too.
  assert len(context.passages) == 3 + 6
  with pytest.raises(ValueError, match="length=6 is less than the 7 tokens"):
    long_context.extend(
      "",
      passages,
      [],
      6,
      entities=names,
      count=count,
      rng=np.random.default_rng(0),
    )


def test_bins_parts_and_their_means():
  found = [long_context.length_bin(n) for n in (0, 8191, 8192, 20_000)]
  assert found == ["0-8192", "0-8192", "8192-16384", "16384-24576"]
  with pytest.raises(ValueError, match="tokens=-1"):
    long_context.length_bin(-1)
  parts = long_context.difficulty([0.1, 0.9, 0.5, 0.5, 0.8, 0.0, 0.3])
  assert parts == ["hard", "easy", "easy", "medium", "easy", "hard", "medium"]
  means = long_context.by_group(
    ["b", "a", "b"], [(0.0, 1.0), (0.5, 0.25), (1.0, 0.0)]
  )
  assert list(means.items()) == [("b", (0.5, 0.5)), ("a", (0.5, 0.25))]
  with pytest.raises(ValueError, match="zip"):
    long_context.by_group(["a"], [])
