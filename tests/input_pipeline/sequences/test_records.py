"""Sentences and records: what one says, the other has."""

import collections
import json
import string

import numpy as np
import pytest

from input_pipeline.sequences import records, sources


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"fields": ("a", "long", "it"), "least": 0, "most": 2, "budget": 3},
    {"fields": ("a",), "least": 1, "most": 1, "budget": 1, "letters": 3},
  ],
)
def test_the_json_has_what_the_sentence_says(fields):
  source = sources.create("records", fields)
  rng = np.random.default_rng(0)
  said, sizes = collections.Counter(), collections.Counter()
  forms, letters = set(), set()
  for _ in range(300):
    example = source.example(rng, "train")
    tokens = example["tokens"]
    length = source.prompt_length + source.output_length
    assert {x.shape for x in example.values()} == {(length,)}
    assert [example[n].dtype for n in ("tokens", "targets", "weights")] == [
      np.int32,
      np.int32,
      np.float32,
    ]
    np.testing.assert_array_equal(example["targets"], tokens)
    prompt = tokens[: source.prompt_length]
    np.testing.assert_array_equal(
      example["weights"], np.arange(length) >= source.prompt_length
    )
    flag, *sentence = source.decode(prompt)
    sentence = "".join(sentence)
    told = dict(part.split(" ") for part in sentence.split(",") if part)
    output = tokens[source.prompt_length :]
    text = source.decode(output)
    read = json.loads(text)
    assert tuple(read) == tuple(source.fields)
    forms.add(flag)
    if flag == "+":
      assert source.end not in output
      # One token of each place.
      assert (output == source.null).sum() == text.count(records.NULL_TEXT)
      read = {n: v.replace(records.NULL_TEXT, "_") for n, v in read.items()}
      assert {len(value) for value in read.values()} == {source.budget}
      read = {name: value.rstrip("_") for name, value in read.items()}
    else:
      assert source.null not in tokens
    assert {name: value for name, value in read.items() if value} == told
    assert source.least <= len(told) <= source.most
    said.update([*told])
    sizes.update(map(len, told.values()))
    letters.update("".join(told.values()))
  assert forms == {"-", "+"}
  assert set(said) == set(source.fields)
  assert set(sizes) == set(range(1, source.budget + 1))
  assert letters == set(string.ascii_uppercase[: source.letters])


def test_the_longest_sentence_fits():
  source = records.Records()
  values = "X" * source.budget
  sentence = ",".join(f"{name} {values}" for name in source.fields[1:])
  assert len(source.prompt(sentence, padded=True)) == 1 + len(sentence)
  with pytest.raises(ValueError, match="there is room for 29"):
    source.prompt(sentence + "x", padded=True)
  with pytest.raises(ValueError, match="are not ASCII"):
    source.prompt("who Ü", padded=True)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"fields": ()}, r"fields is \(\)"),
    ({"fields": ("a", "a")}, "must be different names"),
    ({"fields": ("A", "b")}, "of the letters"),
    ({"most": 5}, "most is 5, more than the 4"),
    ({"most": 0}, "most is 0, but"),
    ({"least": -1}, "least is -1"),
    ({"budget": 0}, "budget is 0"),
    ({"letters": 0}, "letters is 0"),
    ({"letters": 27}, "letters is 27, but the alphabet has 26"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    sources.create("records", fields)
