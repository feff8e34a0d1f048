"""The handwritten digits that come with scikit-learn, as arrays.

1,797 grey images of 8x8 pixels: the test set of Alpaydin and Kaynak (1998),
https://archive.ics.uci.edu/dataset/80. They need no download.
"""

import functools

import numpy as np

# The first four fifths, as in scikit-learn's own example of a classifier, so
# that an accuracy compares with other people's.
NUM_TRAIN = 1437
SPLITS = {"train": slice(None, NUM_TRAIN), "test": slice(NUM_TRAIN, None)}


@functools.cache
def _all() -> tuple[np.ndarray, np.ndarray]:
  # Here, because only who reads digits needs scikit-learn.
  from sklearn import datasets

  digits = datasets.load_digits()
  return digits.images, digits.target


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns images [number, 8, 8] from 0 to 16, and labels [number].

  Args:
    split: "train" or "test".
  """
  images, labels = _all()
  return images[SPLITS[split]], labels[SPLITS[split]]
