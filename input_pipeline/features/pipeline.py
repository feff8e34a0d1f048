"""Batches of images, or of what a trunk made of them once, with labels."""

import json
from collections.abc import Sequence
from typing import Any

import grain
import ml_collections
import numpy as np

from input_pipeline import images, stream
from input_pipeline.features import folder
from input_pipeline.stream import Example

# Which examples, how they are read, and what only other images would see.
_FREE = (
  *("train_split", "eval_split", "num_threads", "num_workers", "data_dir"),
  *("train_transform", "skip_damaged"),
)


def default_config() -> ml_collections.ConfigDict:
  """The digits, which are the default of the image room."""
  config = images.default_config()
  # The folder that tools/cache_features.py wrote; "" is images.
  config.features = ""
  return config


def image_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that decide over what a trunk sees, as in JSON.

  With mean and deviation, which are the task's.
  """
  names = {*images.default_config(), "mean", "std"}.difference(_FREE)
  chosen = {name: config[name] for name in sorted(names) if name in config}
  return json.loads(ml_collections.ConfigDict(chosen).to_json())


def dataset_info(config: ml_collections.ConfigDict) -> images.DatasetInfo:
  """Opens the evaluation split, and no other, to see.

  Raises:
    ValueError: for data that are not there or fields that do not fit.
  """
  if not config.features:
    return images.dataset_info(config)
  record = _checked(config, config.eval_split)
  return images.DatasetInfo(
    num_eval_examples=record.examples, class_names=record.class_names
  )


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """Opens the training split to see how many examples it has."""
  if not config.features:
    return images.num_train_examples(config)
  return _checked(config, config.train_split).examples


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless shuffled batches, as `images.train_iterator` has them.

  Features have map_0, map_1, ... `[local_batch, rows, columns, width]`, in the
  dtype that they are stored in, in the place of image.

  Raises:
    ValueError: for rows that no batch has, and for a config that does not fit.
  """
  if not config.features:
    return images.train_iterator(
      config, seed=seed, global_batch_size=global_batch_size, rows=rows
    )
  return stream.train_iterator(
    _open(config, config.train_split),
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
  """Every example of `eval_split` once, as `images.eval_batches` has them.

  Raises:
    ValueError: as `train_iterator`.
  """
  if not config.features:
    return images.eval_batches(config, batch_size=batch_size, rows=rows)
  return stream.eval_batches(
    _open(config, config.eval_split), config, batch_size=batch_size, rows=rows
  )


class FeatureReader:
  """A `stream.Reader` of maps, label, mask and damaged.

  Attributes:
    num_examples: that can be read.
  """

  def __init__(self, split: folder.Split):
    """Takes an opened split."""
    self.num_examples = split.record.examples
    self._split = split

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    """The example; nothing of it is random."""
    del rng
    maps = [np.array(array[index]) for array in self._split.maps]
    return self._example(maps, self._split.labels[index], 1)

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """The example with its index; padding after the last."""
    if index < self.num_examples:
      return self(index, rng) | {"index": np.int32(index)}
    record = self._split.record
    maps = [np.zeros(shape, record.dtype) for shape in record.shapes]
    return self._example(maps, 0, 0) | {"index": np.int32(-1)}

  def _example(self, maps, label, mask) -> Example:
    return {f"map_{i}": x for i, x in enumerate(maps)} | {
      "label": np.int32(label),
      "mask": np.float32(mask),
      "damaged": np.False_,
    }


def _open(config: ml_collections.ConfigDict, split: str) -> FeatureReader:
  stream.check_reading(config)
  _checked(config, split)
  return FeatureReader(folder.open_split(config.features, split))


def _checked(config: ml_collections.ConfigDict, split: str) -> folder.Record:
  """The record of a split, if the fields of images are those it was made with.

  Raises:
    ValueError: for one that is not.
  """
  record = folder.read_record(config.features, split)
  recorded = record.made["images"]
  for name, value in image_fields(config).items():
    if value != recorded.get(name, value):
      raise ValueError(
        f"data.{name} is {value!r}, which acts on images, but features="
        f"{config.features!r} were made with {recorded[name]!r}: leave it so, "
        "or make them again with tools.cache_features."
      )
  if config.train_transform != config.eval_transform:
    raise ValueError(
      f"data.train_transform is {config.train_transform!r}, but features were "
      "made once, of images as evaluation sees them: set it to "
      f"data.eval_transform, {config.eval_transform!r}."
    )
  return record
