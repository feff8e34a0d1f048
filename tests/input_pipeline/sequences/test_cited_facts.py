"""Contexts and answers, read back from their words."""

import collections
import re

import numpy as np
import pytest

from input_pipeline.sequences import cited_facts, sources


def test_answers_are_what_a_passage_says():
  source = sources.create("cited_facts", {"keys": 40, "values": 8})
  rng = np.random.default_rng(0)
  counts, values = collections.Counter(), collections.defaultdict(set)
  for _ in range(200):
    example = source.example(rng, "train")
    tokens, targets = example["tokens"], example["targets"]
    np.testing.assert_array_equal(tokens[1:], targets[:-1])
    words = source.text([tokens[0], *targets])
    passages = re.findall(r"k(\d+) v(\d+) \[(\d+)\]", words)
    # Answers come behind, and are written as the passages are.
    count = len(passages) - source.questions
    counts[count] += 1
    facts = {int(key): int(value) for key, value, _ in passages[:count]}
    assert len(facts) == count
    assert [int(n) for *_, n in passages[:count]] == list(range(1, count + 1))
    for key, value in facts.items():
      values[key].add(value)
    labelled = np.flatnonzero(example["weights"])
    assert len(labelled) == 3 * source.questions
    asked = set()
    for place in labelled[::3]:
      assert tokens[place - 1] == cited_facts.ASK
      key = int(source.text([tokens[place]])[1:])
      answer = source.text(targets[place : place + 2])
      number = list(facts).index(key) + 1
      assert answer == f"v{facts[key]} [{number}]"
      assert targets[place + 2] == cited_facts.END
      constant = int(key < 20)
      assert example["group"][place : place + 3].tolist() == [constant] * 3
      asked.add(key)
    assert len(asked) == source.questions or count < source.questions
    assert tokens.max() < source.vocabulary_size
  assert set(counts) == {4, 8, 16}
  assert min(counts.values()) > 40
  for key, found in values.items():
    if key < 20:
      assert found == {source.constants[key]}
    else:
      assert len(found) > 4
  other = sources.create(
    "cited_facts", {"keys": 40, "values": 8, "constants_seed": 1}
  )
  assert (other.constants != source.constants).any()


def test_fields_that_do_not_fit():
  for fields, message in (
    ({"passages": (0, 4)}, r"passages\[0\] is 0"),
    ({"passages": (8, 4)}, r"passages\[1\] is 4"),
    ({"keys": 15}, "keys is 15"),
    ({"questions": 0}, "questions is 0"),
    ({"values": 1}, "values is 1"),
  ):
    with pytest.raises(ValueError, match=message):
      sources.create("cited_facts", fields)
