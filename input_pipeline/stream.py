"""Streams of examples in batches, the same whatever the process count.

Every room has an endless random-access dataset of examples to train on, of
which each is a function of its position, and a finite one to evaluate. So the
state of a stream is one number, the examples taken, whatever the size of the
batches, and a process may read any rows of them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import ml_collections
import numpy as np
from absl import flags

from input_pipeline import checks

# What an example that is made up is seeded with, before all else, so that no
# example of one split is made of the numbers that one of the other is made of.
SPLITS = {"train": 0, "eval": 1}
Example = dict[str, Any]
Batch = dict[str, np.ndarray]


class Reader(Protocol):
  """Makes the examples of a split, each of its number and a generator.

  Attributes:
    num_examples: how many there are.
  """

  num_examples: int

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    """An example to train on."""

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """One to evaluate, with index int32; padding after the last has -1."""


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

  def __getitem__(self, index: int) -> Example:
    batch, row = divmod(index, len(self.rows))
    return self.examples[batch * self.batch_size + self.rows[row]]


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
    """Batches an endless stream of examples, and keeps `rows` of each batch.

    Args:
      examples: as `shuffled` makes them, or others with random access.
      config: with `num_threads` and `num_workers`, see `batches_of_rows`.
      batch_size: examples in a batch of all processes together.
      rows: which of them this process reads, as `check_rows` returns them.
    """
    self._examples = examples
    self._config = config
    self._batch_size = batch_size
    self._rows = rows
    self._next_example = 0
    self._iterator = self._start()

  def _start(self) -> Iterator[Batch]:
    rest = self._examples[self._next_example :]
    return iter(
      batches_of_rows(
        rest, self._config, batch_size=self._batch_size, rows=self._rows
      )
    )

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


def shuffled(
  num_examples: int,
  read: Callable[[int, np.random.Generator], Example],
  *,
  seed: int,
) -> grain.MapDataset:
  """An endless stream over `num_examples`, each epoch in its own order.

  Epochs follow each other without a gap. Example n of the stream is a function
  of n, `seed` and what `read` makes of an index and a generator.

  Raises:
    ValueError: for a negative seed.
  """
  if seed < 0:
    raise ValueError(f"seed is {seed}, but it must not be negative.")
  # Two seeds of 32 bits from one of any size. They are hashed because Grain
  # shuffles epoch e with `seed + e`: seed 1 would start as seed 0 goes on.
  order_seed, random_seed = np.random.SeedSequence(seed).generate_state(2)
  return (
    grain.MapDataset.range(num_examples)
    .shuffle(seed=int(order_seed))
    .repeat()
    .random_map(read, seed=int(random_seed))
  )


def train_iterator(
  read: Reader,
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  batch_size: int,
  rows: Sequence[int] | None,
) -> TrainIterator:
  """Endless batches of shuffled examples: the rows of this process.

  Args:
    read: makes the examples.
    config: with `num_threads` and `num_workers`, see `batches_of_rows`.
    seed: of the order and of what is random in an example.
    batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all if None.

  Raises:
    ValueError: for rows that no batch has, or a negative seed.
  """
  rows = check_rows(rows, batch_size)
  examples = shuffled(read.num_examples, read, seed=seed)
  return TrainIterator(examples, config, batch_size=batch_size, rows=rows)


def eval_batches(
  read: Reader,
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int] | None,
) -> grain.IterDataset:
  """Every example once, in order, the last batch padded; see `train_iterator`.

  Raises:
    ValueError: for rows that no batch has.
  """
  rows = check_rows(rows, batch_size)
  num_batches = -(-read.num_examples // batch_size)
  examples = (
    grain.MapDataset.range(num_batches * batch_size)
    # What is random in an example is the same in each evaluation.
    .random_map(read.with_index, seed=0)
  )
  return batches_of_rows(examples, config, batch_size=batch_size, rows=rows)


def batches_of_rows(
  examples: grain.MapDataset,
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int],
) -> grain.IterDataset:
  """Batches that have `rows` of each run of `batch_size` examples.

  Only the rows that are asked for are read, and ahead of their time: by
  `config.num_threads` threads in each of `config.num_workers` processes, of
  which 0 is this process itself. What is iterated again begins again.
  """
  source = _Rows(examples, batch_size, rows)
  batches = (
    grain.MapDataset.source(source)
    .batch(len(rows))
    .to_iter_dataset(
      grain.ReadOptions(
        num_threads=config.num_threads,
        prefetch_buffer_size=config.num_threads and config.num_threads + 1,
      )
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


def check_rows(rows: Sequence[int] | None, batch_size: int) -> Sequence[int]:
  """The rows of a batch that a process reads; all of them for None.

  Raises:
    ValueError: for rows that no batch has, or for none.
  """
  if batch_size < 1:
    raise ValueError(f"batch size {batch_size} is not positive.")
  rows = range(batch_size) if rows is None else rows
  if len(rows) == 0 or not 0 <= min(rows) <= max(rows) < batch_size:
    raise ValueError(
      f"rows are {rows}, but a batch has those from 0 to {batch_size - 1}, and "
      "a process reads at least one."
    )
  return rows


def check_reading(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for numbers of threads or processes that cannot be."""
  checks.check_integer("num_threads", config.num_threads, 0)
  checks.check_integer("num_workers", config.num_workers, 0)
