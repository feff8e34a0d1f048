"""Strings backwards."""

import numpy as np
import pytest

from input_pipeline.sequences import sources


@pytest.mark.parametrize(("length", "symbols"), [(6, 16), (1, 2), (3, 4)])
def test_labels_are_the_string_backwards(length, symbols):
  source = sources.create("reversal", {"length": length, "symbols": symbols})
  rng = np.random.default_rng(0)
  seen = set()
  for _ in range(50):
    example = source.example(rng, "train")
    string = example["tokens"][:length].tolist()
    assert example["tokens"][length] == 0
    answered = example["weights"] == 1
    assert example["targets"][answered].tolist() == string[::-1]
    assert answered.tolist() == [False] * length + [True] * length
    np.testing.assert_array_equal(
      example["tokens"][1:], example["targets"][:-1]
    )
    assert {example[n].dtype for n in ("tokens", "targets")} == {
      np.dtype("int32")
    }
    seen.update(string)
  assert seen == set(range(1, source.vocabulary_size))


def test_fields_that_do_not_fit():
  for fields, message in (
    ({"length": 0}, "length is 0"),
    ({"symbols": 1}, "symbols is 1"),
  ):
    with pytest.raises(ValueError, match=message):
      sources.create("reversal", fields)
