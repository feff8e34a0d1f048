"""Batches for training and evaluation, the same whatever the process count.

A record passes: source -> decode -> transform -> batch. Everything up to a
batch is a function of its position in one global stream, so that the state of
the stream is one number, and process p of P takes each P-th local batch.
"""

import dataclasses
from collections.abc import Iterator

import grain
import ml_collections
import numpy as np
from absl import flags

from input_pipeline import class_subset, reader
from input_pipeline.source import AbsentSplitError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What a run must know of its data set before it starts.

  Without a training split, which evaluation does not need, num_train_examples
  is 0.
  """

  num_train_examples: int
  num_eval_examples: int
  num_classes: int
  class_names: tuple[str, ...]


def dataset_info(config: ml_collections.ConfigDict) -> DatasetInfo:
  """Sizes of both splits and the classes; opens the data set to see."""
  evaluation = class_subset.open_source(config, config.eval_split)
  try:
    num_train_examples = len(
      class_subset.open_source(config, config.train_split)
    )
  except AbsentSplitError:
    num_train_examples = 0
  return DatasetInfo(
    num_train_examples=num_train_examples,
    num_eval_examples=len(evaluation),
    num_classes=len(evaluation.class_names),
    class_names=evaluation.class_names,
  )


def present_classes(config: ml_collections.ConfigDict) -> np.ndarray:
  """Which classes `eval_split` has examples of: bool `[num_classes]`.

  Reads all of its records once.
  """
  source = class_subset.open_source(config, config.eval_split)
  return np.isin(np.arange(len(source.class_names)), source.read_labels())


class TrainIterator(Iterator[Batch]):
  """Endless batches, with a state of one number that any run can restore.

  Grain's own state depends on the number of workers, so a run could not be
  continued on a machine with more cores.
  """

  def __init__(
    self, dataset: grain.MapDataset, config: ml_collections.ConfigDict
  ):
    self._dataset = dataset
    self._config = config
    self._next_batch = 0
    self._iterator = iter(_prefetch(dataset, config))

  def __next__(self) -> Batch:
    batch = next(self._iterator)
    self._next_batch += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """The number of batches before the next one."""
    return {"next_batch": self._next_batch}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes on where `get_state` was called; takes the same time anywhere."""
    self.close()
    self._next_batch = int(state["next_batch"])
    rest = self._dataset[self._next_batch :]
    self._iterator = iter(_prefetch(rest, self._config))

  def close(self) -> None:
    """Ends the worker processes, if there are any."""
    self._iterator.close()


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> TrainIterator:
  """Endless shuffled and augmented batches: the rows of this process.

  Each epoch has its own order, and epochs follow each other without a gap: a
  batch may hold the end of one and the start of the next. Batch k, with the
  augmentation of each example, is a function of the config, `seed` and k; the
  local batches of all processes, one after another, are the global batch.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the order and of the augmentation.
    global_batch_size: examples in a batch of all processes together.
    process_index: of this process.
    process_count: of all processes.

  Returns:
    An iterator of dicts: image uint8 `[local_batch, image_size, image_size,
    channels]`, label int32 `[local_batch]`, and mask float32 and damaged bool
    `[local_batch]`: mask is 0 where a damaged image was skipped.

  Raises:
    ValueError: for a batch that cannot be shared evenly, and for a config that
      does not fit; before any record is read.
    DamagedImageError: from the iterator, unless `skip_damaged`.
  """
  local_batch_size = _share(global_batch_size, process_index, process_count)
  if seed < 0:
    raise ValueError(f"seed is {seed}, but it must not be negative.")
  # Two seeds of 32 bits from one of any size. They are hashed because Grain
  # shuffles epoch e with `seed + e`: seed 1 would start as seed 0 goes on.
  order_seed, augmentation_seed = np.random.SeedSequence(seed).generate_state(2)
  source = class_subset.open_source(config, config.train_split)
  if source.many_labels:
    raise ValueError(
      f"label: {config.label!r} of {config.name!r} is a sequence of labels, "
      "which serves evaluation only."
    )
  read = reader.Reader(source, config, "train_transform")
  dataset = (
    grain.MapDataset.range(read.num_examples)
    .shuffle(seed=int(order_seed))
    .repeat()
    .random_map(read, seed=int(augmentation_seed))
    .batch(local_batch_size)[process_index::process_count]
  )
  return TrainIterator(dataset, config)


def eval_batches(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Every example of `eval_split` once, in order: the rows of this process.

  All processes have the same number of batches. The last ones are padded with
  zeros.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: examples in a batch of all processes together.
    process_index: of this process.
    process_count: of all processes.

  Returns:
    An iterable of dicts as `train_iterator` has them, and index int32
    `[local_batch]`, the example's position in the split. Padding has index -1
    and mask 0. Of images with many labels, label is uint8 `[local_batch,
    classes]` with ones there, none where no label is a class. It can be
    iterated again.

  Raises:
    ValueError, DamagedImageError: as `train_iterator`.
  """
  local_batch_size = _share(batch_size, process_index, process_count)
  read = reader.Reader(
    class_subset.open_source(config, config.eval_split),
    config,
    "eval_transform",
  )
  num_batches = -(-read.num_examples // batch_size)
  dataset = (
    grain.MapDataset.range(num_batches * batch_size)
    # A transform that is random has the same randomness in each evaluation.
    .random_map(read.with_index, seed=0)
    .batch(local_batch_size)[process_index::process_count]
  )
  return _prefetch(dataset, config)


def count_damaged(batch: Batch) -> int:
  """How many images of a batch were skipped because they are damaged."""
  return int(np.sum(batch["damaged"]))


def _prefetch(
  dataset: grain.MapDataset, config: ml_collections.ConfigDict
) -> grain.IterDataset:
  """Reads ahead, in threads and, if so configured, in processes."""
  batches = dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=config.num_threads,
      prefetch_buffer_size=config.num_threads and config.num_threads + 1,
    )
  )
  if config.num_workers == 0:
    return batches
  # Grain's workers inherit its absl flags. Where no `app.run` has parsed them,
  # as in a notebook, they have their defaults.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  return batches.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=config.num_workers)
  )


def _share(batch_size: int, process_index: int, process_count: int) -> int:
  """This process's number of rows of a batch."""
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index is {process_index}, but with process_count"
      f" {process_count} it must be from 0 to {process_count - 1}."
    )
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch size {batch_size} is not a positive multiple of the"
      f" {process_count} processes."
    )
  return batch_size // process_count
