"""Batches of scenes, for training and for evaluation."""

import dataclasses
from collections.abc import Sequence

import grain
import ml_collections
import numpy as np

from input_pipeline import stream
from input_pipeline.scenes import shapes
from input_pipeline.scenes.config import check_config
from input_pipeline.stream import Example


@dataclasses.dataclass(frozen=True)
class ScenesInfo:
  """What must be known of scenes before a model is made.

  Attributes:
    classes: names of what there is.
    image_size: side in pixels.
    most_objects: in a scene.
    num_eval_examples: in an evaluation.
    num_train_examples: in an epoch.
  """

  classes: tuple[str, ...]
  image_size: int
  most_objects: int
  num_eval_examples: int
  num_train_examples: int


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Makes the scenes of a split; see `stream.Reader`."""

  config: ml_collections.ConfigDict
  split: str
  seed: int
  num_examples: int

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    # Not of `rng`, so that an epoch has the scenes of the one before.
    del rng
    numbers = (stream.SPLITS[self.split], self.seed, index)
    config = self.config
    return shapes.scene(
      np.random.default_rng(numbers),
      config.domain,
      config.image_size,
      config.most_objects,
    )

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """A scene; padding after the last has index -1."""
    number = index if index < self.num_examples else -1
    return {**self(index, rng), "index": np.int32(number)}


def dataset_info(config: ml_collections.ConfigDict) -> ScenesInfo:
  """Says what there is.

  Raises:
    ValueError: for a config that does not fit.
  """
  check_config(config)
  return ScenesInfo(
    shapes.CLASSES,
    config.image_size,
    config.most_objects,
    config.eval_examples,
    config.train_examples,
  )


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """Scenes of an epoch."""
  return config.train_examples


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless shuffled batches: the rows of this process.

  Scene n of an epoch is a function of the config, `seed` and n. With few
  `train_examples` these are the shots of few-shot learning.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the scenes and of their order.
    global_batch_size: scenes in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterator of dicts of what `shapes.scene` gives, batched.

  Raises:
    ValueError: for rows that no batch has, and for a config that does not fit.
  """
  check_config(config)
  read = _Reader(config, "train", seed, config.train_examples)
  return stream.train_iterator(
    read, config, seed=seed, batch_size=global_batch_size, rows=rows
  )


def eval_batches(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.IterDataset:
  """Every scene to evaluate once, the same whatever the seed of a run.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: scenes in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterable of dicts as `train_iterator` has them, and index int32
    `[local_batch]`, -1 for padding. It can be iterated again.

  Raises:
    ValueError: as `train_iterator`.
  """
  check_config(config)
  read = _Reader(config, "eval", 0, config.eval_examples)
  return stream.eval_batches(read, config, batch_size=batch_size, rows=rows)
