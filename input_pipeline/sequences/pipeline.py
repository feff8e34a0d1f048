"""Batches of sequences with labels, for training and for evaluation."""

import dataclasses
from collections.abc import Mapping, Sequence

import grain
import ml_collections
import numpy as np

from input_pipeline import stream
from input_pipeline.sequences import sources
from input_pipeline.sequences.config import check_config
from input_pipeline.stream import Example


@dataclasses.dataclass(frozen=True)
class SequencesInfo:
  """What must be known of sequences before a model is made.

  Attributes:
    vocabulary_size: tokens there are.
    classes: labels there are.
    groups: names of the groups that evaluation reports, () for none.
    arrays: of a training example by name, without values.
    eval_arrays: of one to evaluate.
    num_eval_examples: in an evaluation.
    num_train_examples: in an epoch.
  """

  vocabulary_size: int
  classes: int
  groups: tuple[str, ...]
  arrays: Mapping[str, np.ndarray]
  eval_arrays: Mapping[str, np.ndarray]
  num_eval_examples: int
  num_train_examples: int


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Makes the examples of a split; see `stream.Reader`."""

  source: sources.Source
  split: str
  seed: int
  num_examples: int

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    # Not of `rng`, so that an epoch has the examples of the one before.
    del rng
    numbers = (stream.SPLITS[self.split], self.seed, index)
    return self.source.example(np.random.default_rng(numbers), self.split)

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """An example; padding after the last is one that does not count."""
    example = self(index, rng)
    if index < self.num_examples:
      return {**example, "index": np.int32(index)}
    nothing = np.zeros_like(example["weights"])
    return {**example, "weights": nothing, "index": np.int32(-1)}


def _source(config: ml_collections.ConfigDict, split: str) -> sources.Source:
  """The source of a split."""
  check_config(config)
  options = config.options.to_dict()
  if split == "eval":
    options |= config.eval_options.to_dict()
  return sources.create(config.source, options)


def dataset_info(config: ml_collections.ConfigDict) -> SequencesInfo:
  """Makes an example of each split to see.

  Raises:
    ValueError: for a source or options that do not fit.
  """
  train, evaluated = (_source(config, split) for split in stream.SPLITS)
  for field in ("vocabulary_size", "classes"):
    own, other = getattr(train, field), getattr(evaluated, field)
    if own != other:
      raise ValueError(
        f"eval_options is {config.eval_options.to_dict()}, with which {field} "
        f"is {other}; it must be {own}, as in training."
      )
  made, tried = (
    source.example(np.random.default_rng(0), split)
    for source, split in ((train, "train"), (evaluated, "eval"))
  )
  return SequencesInfo(
    vocabulary_size=train.vocabulary_size,
    classes=train.classes,
    groups=tuple(evaluated.groups),
    arrays={name: np.asarray(x) for name, x in made.items()},
    eval_arrays={name: np.asarray(x) for name, x in tried.items()},
    num_eval_examples=config.eval_examples,
    num_train_examples=config.train_examples,
  )


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """Examples of an epoch."""
  return config.train_examples


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless shuffled batches: the rows of this process.

  Example n of an epoch is a function of the config, `seed` and n, the same in
  each epoch.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the examples and of their order.
    global_batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterator of dicts of what `sources.Source.example` gives, batched.

  Raises:
    ValueError: for rows that no batch has, and for a config that does not fit.
  """
  read = _Reader(_source(config, "train"), "train", seed, config.train_examples)
  return stream.train_iterator(
    read, config, seed=seed, batch_size=global_batch_size, rows=rows
  )


def eval_batches(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.IterDataset:
  """Every example to evaluate once, the same whatever the seed of a run.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterable of dicts as `train_iterator` has them, and index int32
    `[local_batch]`; padding after the last has index -1 and no weight. It can
    be iterated again.

  Raises:
    ValueError: as `train_iterator`.
  """
  read = _Reader(_source(config, "eval"), "eval", 0, config.eval_examples)
  return stream.eval_batches(read, config, batch_size=batch_size, rows=rows)
