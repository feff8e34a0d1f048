"""Some classes of a data set, as if it had no others."""

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from input_pipeline.images import source
from input_pipeline.images.config import check_config
from input_pipeline.images.source import Source


def open_source(
  config: ml_collections.ConfigDict, split: str
) -> "Source | ClassSubset":
  """Opens a split as `source.open_source`, with `config.classes` only.

  Raises:
    ValueError: as it does, or for a number in `config` that does not fit.
  """
  check_config(config)
  whole = source.open_source(config, split)
  return ClassSubset(whole, config.classes) if config.classes else whole


class ClassSubset:
  """A `Source` of those records whose label is among `classes`.

  The first of them becomes label 0, and so on.

  Attributes:
    name: as in `Source`.
    split: as in `Source`.
    class_names: as in `Source`, of these classes.
    image_shape: as in `Source`.
    many_labels: False.
  """

  many_labels = False

  def __init__(self, whole: Source, classes: Sequence[int]):
    """Reads all labels, and with them all records of the split once.

    Raises:
      ValueError: if a class does not exist or is there twice, if the split has
        no example of them, or if its images have several labels.
    """
    known = range(len(whole.class_names))
    if len(set(classes)) < len(classes) or not set(classes) <= set(known):
      raise ValueError(
        f"classes is {tuple(classes)}, but they must be different labels of "
        f"{whole.name!r}, from 0 to {known[-1]}."
      )
    self.name, self.split = whole.name, whole.split
    self.image_shape = whole.image_shape
    self.class_names = tuple(whole.class_names[label] for label in classes)
    self._source = whole
    new_label = {label: i for i, label in enumerate(classes)}
    labels = whole.read_labels()
    self._rows = np.flatnonzero(np.isin(labels, classes))
    self._labels = [new_label[label] for label in labels[self._rows]]
    if not self._labels:
      raise ValueError(
        f"classes is {tuple(classes)}, but split {whole.split!r} of "
        f"{whole.name!r} has no example of them."
      )

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._source[int(self._rows[index])]
    return record | {"label": self._labels[index]}

  def read_labels(self) -> np.ndarray:
    """The label of each record."""
    return np.array(self._labels)

  def describe(self, index: int) -> str:
    """Says where a record is, for messages."""
    return self._source.describe(int(self._rows[index]))
