"""Batches for training and evaluation, the same whatever the process count.

A record passes: source -> decode -> transform -> rows -> batch. An example is
a function of its position in one global stream, so that the state of the stream
is one number, the examples taken, whatever the size of the batches, and a
process may read any rows of them.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import ml_collections
import numpy as np
from absl import flags

from input_pipeline import class_subset, reader

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What evaluation must know of its data set before it starts."""

  num_eval_examples: int
  num_classes: int
  class_names: tuple[str, ...]


def dataset_info(config: ml_collections.ConfigDict) -> DatasetInfo:
  """Opens the evaluation split, and no other, to see."""
  evaluation = class_subset.open_source(config, config.eval_split)
  return DatasetInfo(
    num_eval_examples=len(evaluation),
    num_classes=len(evaluation.class_names),
    class_names=evaluation.class_names,
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


@dataclasses.dataclass(frozen=True)
class _Rows:
  """Of each run of `batch_size` examples only `rows`, one after another."""

  examples: grain.MapDataset
  batch_size: int
  rows: Sequence[int]

  def __len__(self) -> int:
    length = len(self.examples) // self.batch_size * len(self.rows)
    # Grain has floats of an endless stream's length, which may round up.
    return min(length, 2**62)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    batch, row = divmod(index, len(self.rows))
    return self.examples[batch * self.batch_size + self.rows[row]]


def _batch_rows(
  examples: grain.MapDataset, batch_size: int, rows: Sequence[int]
) -> grain.MapDataset:
  # Only the rows that are asked for are read.
  source = _Rows(examples, batch_size, rows)
  return grain.MapDataset.source(source).batch(len(rows))


class TrainIterator(Iterator[Batch]):
  """Endless batches, with a state of one number that any run can restore.

  Grain's own state depends on the number of workers, so a run could not be
  continued on a machine with more cores.
  """

  def __init__(
    self,
    examples: grain.MapDataset,
    config: ml_collections.ConfigDict,
    *,
    batch_size: int,
    rows: Sequence[int],
  ):
    """Batches an endless stream of examples, and keeps `rows` of each batch."""
    self._examples = examples
    self._config = config
    self._batch_size = batch_size
    self._rows = rows
    self._next_example = 0
    self._iterator = self._start()

  def _start(self) -> Iterator[Batch]:
    rest = self._examples[self._next_example :]
    batches = _batch_rows(rest, self._batch_size, self._rows)
    return iter(_prefetch(batches, self._config))

  def __next__(self) -> Batch:
    batch = next(self._iterator)
    self._next_example += self._batch_size
    return batch

  def get_state(self) -> dict[str, int]:
    """The number of examples before the next batch, over all processes."""
    return {"next_example": self._next_example}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes on where `get_state` was called; takes the same time anywhere.

    The batches may have another size, or other processes take part: the stream
    of examples is the same.

    Raises:
      ValueError: if `state` is none of `get_state`.
    """
    if set(state) != {"next_example"}:
      raise ValueError(
        f"The position in the data is {state}, but must be next_example, the "
        "number of examples taken: this checkpoint was written before they "
        "were counted. Start in another workdir from its weights, with "
        "--config.init.weights=<this one>."
      )
    self.close()
    self._next_example = int(state["next_example"])
    self._iterator = self._start()

  def close(self) -> None:
    """Ends the worker processes, if there are any."""
    self._iterator.close()


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> TrainIterator:
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
  rows = _check_rows(rows, global_batch_size)
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
  examples = (
    grain.MapDataset.range(read.num_examples)
    .shuffle(seed=int(order_seed))
    .repeat()
    .random_map(read, seed=int(augmentation_seed))
  )
  return TrainIterator(
    examples, config, batch_size=global_batch_size, rows=rows
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
  rows = _check_rows(rows, batch_size)
  read = reader.Reader(
    class_subset.open_source(config, config.eval_split),
    config,
    "eval_transform",
  )
  num_batches = -(-read.num_examples // batch_size)
  examples = (
    grain.MapDataset.range(num_batches * batch_size)
    # A transform that is random has the same randomness in each evaluation.
    .random_map(read.with_index, seed=0)
  )
  return _prefetch(_batch_rows(examples, batch_size, rows), config)


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


def _check_rows(rows: Sequence[int] | None, batch_size: int) -> Sequence[int]:
  if batch_size < 1:
    raise ValueError(f"batch size {batch_size} is not positive.")
  rows = range(batch_size) if rows is None else rows
  if len(rows) == 0 or not 0 <= min(rows) <= max(rows) < batch_size:
    raise ValueError(
      f"rows are {rows}, but a batch has those from 0 to {batch_size - 1}, and "
      "a process reads at least one."
    )
  return rows
