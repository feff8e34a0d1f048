"""Batches for training and evaluation, the same whatever the process count.

A record passes: source -> decode -> transform -> rows -> batch.
"""

import dataclasses
from collections.abc import Sequence

import grain
import ml_collections
import numpy as np

from input_pipeline import stream
from input_pipeline.images import class_subset, reader


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What must be known of a data set before it is read.

  Attributes:
    num_eval_examples: in the evaluation split.
    class_names: by label.
    many_labels: whether an image to evaluate may have several labels.
    num_train_examples: in the training split; None if nobody has looked.
  """

  num_eval_examples: int
  class_names: tuple[str, ...]
  many_labels: bool = False
  num_train_examples: int | None = None


def dataset_info(config: ml_collections.ConfigDict) -> DatasetInfo:
  """Opens the evaluation split, and no other, to see."""
  evaluation = class_subset.open_source(config, config.eval_split)
  return DatasetInfo(
    num_eval_examples=len(evaluation),
    class_names=evaluation.class_names,
    many_labels=evaluation.many_labels,
  )


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """Opens the training split to see how many examples it has."""
  return len(class_subset.open_source(config, config.train_split))


def present_classes(config: ml_collections.ConfigDict) -> np.ndarray:
  """Which classes `eval_split` has examples of: bool `[num_classes]`.

  Reads all of its records once.
  """
  source = class_subset.open_source(config, config.eval_split)
  return np.isin(np.arange(len(source.class_names)), source.read_labels())


def train_reader(config: ml_collections.ConfigDict) -> reader.Reader:
  """Opens the training split; what makes its examples.

  Raises:
    ValueError: as `train_iterator`.
  """
  source = class_subset.open_source(config, config.train_split)
  if source.many_labels:
    raise ValueError(
      f"label: {config.label!r} of {config.name!r} is a sequence of labels, "
      "which serves evaluation only."
    )
  return reader.Reader(source, config, "train_transform")


def eval_reader(config: ml_collections.ConfigDict) -> reader.Reader:
  """Opens the evaluation split; what makes its examples.

  Raises:
    ValueError: as `train_iterator`.
  """
  source = class_subset.open_source(config, config.eval_split)
  return reader.Reader(source, config, "eval_transform")


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless shuffled and augmented batches: the rows of this process.

  Each epoch has its own order, and epochs follow each other without a gap: a
  batch may hold the end of one and the start of the next. Example n of the
  stream, with its augmentation, is a function of the config, `seed` and n, and
  batch k has the examples from `k * global_batch_size`.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the order and of the augmentation.
    global_batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterator of dicts: image uint8 `[local_batch, image_size, image_size,
    channels]`, label int32 `[local_batch]`, and mask float32 and damaged bool
    `[local_batch]`: mask is 0 where a damaged image was skipped.

  Raises:
    ValueError: for rows that no batch has, and for a config that does not fit;
      before any record is read.
    DamagedImageError: from the iterator, unless `skip_damaged`.
  """
  return stream.train_iterator(
    train_reader(config),
    config,
    seed=seed,
    batch_size=global_batch_size,
    rows=rows,
  )


def eval_batches(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.IterDataset:
  """Every example of `eval_split` once, in order: the rows of this process.

  All processes have the same number of batches. The last ones are padded with
  zeros.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterable of dicts as `train_iterator` has them, and index int32
    `[local_batch]`, the example's position in the split. Padding has index -1
    and mask 0. Of images with many labels, label is uint8 `[local_batch,
    classes]` with ones there, none where no label is a class. It can be
    iterated again.

  Raises:
    ValueError, DamagedImageError: as `train_iterator`.
  """
  return stream.eval_batches(
    eval_reader(config), config, batch_size=batch_size, rows=rows
  )
