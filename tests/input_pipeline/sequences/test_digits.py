"""Digits as sequences are scikit-learn's, cut into patches."""

import numpy as np
import pytest
from sklearn import datasets

from input_pipeline.sequences.digits import Digits


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_patches_are_of_the_image(patch):
  inputs, labels = Digits(patch).load("eval")
  digits = datasets.load_digits()
  np.testing.assert_array_equal(labels, digits.target[1437:])
  assert inputs.shape == (360, (8 // patch) ** 2, patch**2)
  assert (inputs.dtype, labels.dtype) == (np.float32, np.int32)
  number = 0
  for row in range(0, 8, patch):
    for column in range(0, 8, patch):
      square = digits.images[1437:, row : row + patch, column : column + patch]
      expected = square.reshape(360, -1) / 16
      np.testing.assert_array_equal(inputs[:, number], expected)
      number += 1


def test_examples_are_of_their_split_and_differ():
  source = Digits()
  for split, number in (("train", 1437), ("eval", 360)):
    inputs, labels = source.load(split)
    assert len(labels) == number
    known = {
      x.tobytes(): label for x, label in zip(inputs, labels, strict=True)
    }
    drawn = [
      source.example(np.random.default_rng((1, n)), split) for n in range(200)
    ]
    rows = [example["inputs"].tobytes() for example in drawn]
    assert len(set(rows)) > 100
    for row, example in zip(rows, drawn, strict=True):
      assert example["targets"].tolist() == [known[row]]
      assert example["weights"].tolist() == [1]
  with pytest.raises(ValueError, match="patch is 3"):
    Digits(3)
