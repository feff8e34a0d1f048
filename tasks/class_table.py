"""The accuracy of each class, as a file."""

import csv
from collections.abc import Sequence

import numpy as np

import storage


def write(
  path: str, names: Sequence[str], examples: np.ndarray, correct: np.ndarray
) -> None:
  """Writes a CSV file with a row for each class.

  Args:
    path: of the file.
    names: of the classes.
    examples: of each class, how many there were.
    correct: of each class, how many of these were right.
  """
  with storage.path(path).open("w") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["label", "name", "examples", "correct", "accuracy"])
    for label, name in enumerate(names):
      total, right = int(examples[label]), int(correct[label])
      accuracy = f"{right / total:.4f}" if total else ""
      writer.writerow([label, name, total, right, accuracy])
