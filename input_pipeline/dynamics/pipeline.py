"""Batches of states, for training and for evaluation."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import grain
import ml_collections
import numpy as np

from input_pipeline import stream
from input_pipeline.dynamics import integrators, systems
from input_pipeline.dynamics.config import check_config
from input_pipeline.stream import Example

# The deviation of a number that only fades, in the units of the systems.
_AT_REST = 1e-8


@dataclasses.dataclass(frozen=True)
class DynamicsInfo:
  """What must be known of trajectories before a model is made.

  Attributes:
    size: numbers of a state.
    interval: time from one state to the next.
    mean: of each number over the states to train on, float64 [size].
    std: likewise its deviation; states are given as (state - mean) / std.
    num_eval_examples: in an evaluation.
    num_train_examples: in an epoch.
  """

  size: int
  interval: float
  mean: np.ndarray
  std: np.ndarray
  num_eval_examples: int
  num_train_examples: int


def dataset_info(config: ml_collections.ConfigDict) -> DynamicsInfo:
  """Makes the trajectories to train on, whose scale is that of all examples.

  Raises:
    ValueError: for a system or options that do not fit.
  """
  check_config(config)
  system = systems.create(config.system, config.options.to_dict())
  mean, std = _scale(*_training(config))
  return DynamicsInfo(
    size=system.size,
    interval=system.step * system.every,
    mean=mean,
    std=std,
    num_eval_examples=config.eval_examples,
    num_train_examples=num_train_examples(config),
  )


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """Examples of an epoch: all windows, or all chunks one after another."""
  check_config(config)
  return config.trajectories * _per_trajectory(config)


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless batches: the rows of this process.

  Windows are shuffled in each epoch. Of consecutive chunks each batch goes on
  where the one before ended, row by row, and all rows begin new trajectories
  together; which row has which, and where its first chunk begins, is another in
  each epoch.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the order; trajectories are those of `config.seed`.
    global_batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterator of dicts of states, float32 [local_batch, length + 1 + ahead,
    size], of mean 0 and deviation 1; and begins, bool [local_batch], whether an
    example is the first of its trajectory, as all windows are.

  Raises:
    ValueError: for rows that no batch has, for a config that does not fit, or
      for a batch size that does not divide the trajectories where the order is
      consecutive.
  """
  check_config(config)
  read = _Windows(_scaled(config, "train"), _example_length(config))
  if config.order == "shuffled":
    return stream.train_iterator(
      read, config, seed=seed, batch_size=global_batch_size, rows=rows
    )
  if config.trajectories % global_batch_size:
    raise ValueError(
      f"batch_size is {global_batch_size}, which does not divide "
      f"data.trajectories {config.trajectories}: with data.order 'consecutive' "
      "each row of a batch goes through trajectories of its own."
    )
  chunks = _Chunks(read, config.length, global_batch_size, seed)
  return stream.TrainIterator(
    grain.MapDataset.source(chunks),
    config,
    batch_size=global_batch_size,
    rows=stream.check_rows(rows, global_batch_size),
  )


def eval_batches(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.IterDataset:
  """Every trajectory to evaluate once, the same whatever the seed of a run.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterable of dicts of states, float32 [local_batch, warm_up + horizon,
    size], weights float32 and index int32 [local_batch]; padding after the last
    has index -1 and weight 0. It can be iterated again.

  Raises:
    ValueError: as `train_iterator`.
  """
  check_config(config)
  read = _Windows(_scaled(config, "eval"), config.warm_up + config.horizon)
  return stream.eval_batches(read, config, batch_size=batch_size, rows=rows)


@dataclasses.dataclass(frozen=True)
class _Windows:
  """Runs of states by number; see `stream.Reader`."""

  states: np.ndarray  # float32 [trajectories, states, size]
  length: int

  @property
  def starts(self) -> int:
    """Windows of a trajectory."""
    return self.states.shape[1] - self.length + 1

  @property
  def num_examples(self) -> int:
    return len(self.states) * self.starts

  def window(self, trajectory: int, start: int) -> np.ndarray:
    return self.states[trajectory, start : start + self.length]

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    del rng
    states = self.window(*divmod(index, self.starts))
    return {"states": states, "begins": np.bool_(True)}

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """An example; padding after the last is the first once more."""
    there = index < self.num_examples
    return {
      "states": self(index if there else 0, rng)["states"],
      "weights": np.float32(there),
      "index": np.int32(index if there else -1),
    }


@dataclasses.dataclass(frozen=True)
class _Chunks:
  """An endless source of chunks, in the order of rows and then of time."""

  read: _Windows
  length: int
  batch_size: int
  seed: int

  def __len__(self) -> int:
    # Grain has floats of it, which may round up.
    return 2**62

  def __getitem__(self, index: int) -> dict[str, Any]:
    batch, row = divmod(int(index), self.batch_size)
    # The first state of the last chunk is at most `starts - 1`.
    chunks = (self.read.starts - 1) // self.length + 1
    groups = len(self.read.states) // self.batch_size
    epoch, batch = divmod(batch, groups * chunks)
    group, chunk = divmod(batch, chunks)
    order, offsets = self._epoch(epoch)
    trajectory = order[group * self.batch_size + row]
    start = chunk * self.length + offsets[trajectory]
    return {
      "states": self.read.window(trajectory, start),
      "begins": np.bool_(chunk == 0),
    }

  def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of trajectories, and where the first chunk of each begins."""
    # Of the states that are left over where chunks do not divide them.
    left = (self.read.starts - 1) % self.length
    return _order(len(self.read.states), left, self.seed, epoch)


@functools.lru_cache(maxsize=16)
def _order(count, left, seed, epoch):
  rng = np.random.default_rng((seed, epoch))
  return rng.permutation(count), rng.integers(0, left, count, endpoint=True)


def _example_length(config: ml_collections.ConfigDict) -> int:
  return config.length + 1 + config.ahead


def _per_trajectory(config: ml_collections.ConfigDict) -> int:
  starts = config.states - _example_length(config) + 1
  if config.order == "shuffled":
    return starts
  return (starts - 1) // config.length + 1


def _training(config: ml_collections.ConfigDict) -> tuple[Any, ...]:
  """What the trajectories to train on are made of."""
  system = systems.create(config.system, config.options.to_dict())
  stream_number = stream.SPLITS["train"]
  return system, stream_number, config.seed, config.trajectories, config.states


def _scaled(config: ml_collections.ConfigDict, split: str) -> np.ndarray:
  """The trajectories of a split, float32."""
  training = _training(config)
  mean, std = _scale(*training)
  if split == "train":
    made = integrators.trajectories(*training)
  else:
    made = integrators.trajectories(
      training[0],
      stream.SPLITS[split],
      config.seed,
      config.eval_examples,
      config.warm_up + config.horizon,
    )
  return ((made - mean) / std).astype(np.float32)


@functools.lru_cache
def _scale(*training: Any) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation of each number over all states to train on, [size].

  Raises:
    ValueError: if a number never changes.
  """
  made = integrators.trajectories(*training)
  mean, std = made.mean((0, 1)), made.std((0, 1))
  if std.min() < _AT_REST:
    raise ValueError(
      f"{training[0]} rests: a number of its states never changes, so there is "
      "nothing to forecast."
    )
  return mean, std
