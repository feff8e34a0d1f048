"""Batches of clusters, for training and for evaluation."""

import dataclasses
from collections.abc import Sequence

import grain
import ml_collections
import numpy as np

from input_pipeline import stream
from input_pipeline.clusters import energies
from input_pipeline.clusters.config import check_config
from input_pipeline.clusters.made import Clusters, clusters, rotation
from input_pipeline.stream import Example

# That of argon.
ELEMENT = 18


@dataclasses.dataclass(frozen=True)
class ClustersInfo:
  """What must be known of clusters before a model is made.

  Attributes:
    atoms: places of a structure, A.
    energy_mean: of an atom, over the clusters to train on.
    energy_scale: deviation there of a cluster's energy per atom; models predict
      (energy - atoms * energy_mean) / energy_scale.
    force_scale: root mean square of a force's coordinate there, likewise.
    element: the number of an atom, the same for all.
    num_eval_examples: in an evaluation.
    num_train_examples: in an epoch.
  """

  atoms: int
  energy_mean: float
  energy_scale: float
  force_scale: float
  element: int
  num_eval_examples: int
  num_train_examples: int


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Clusters by number; see `stream.Reader`."""

  made: Clusters
  rotate: bool

  @property
  def num_examples(self) -> int:
    return len(self.made.energy)

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    turn = rotation(rng) if self.rotate else np.eye(3)
    return self._example(index, turn)

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """An example; padding after the last is the first without weight."""
    del rng
    there = index < self.num_examples
    return {
      **self._example(index if there else 0, np.eye(3)),
      "weights": np.float32(there),
      "index": np.int32(index if there else -1),
    }

  def _example(self, index: int, turn: np.ndarray) -> Example:
    present, positions, energy, forces = (x[index] for x in self.made)
    return {
      "numbers": np.where(present, ELEMENT, 0).astype(np.int32),
      "positions": (positions @ turn).astype(np.float32),
      "energy": np.float32(energy),
      "forces": (forces @ turn).astype(np.float32),
    }


def _made(config: ml_collections.ConfigDict, split: str) -> Clusters:
  check_config(config)
  return clusters(
    energies.create(config.potential, config.options.to_dict()),
    stream.SPLITS[split],
    config.seed,
    config[f"{split}_examples"],
    tuple(config.atoms),
    tuple(config.relaxation),
    config.jitter,
  )


def dataset_info(config: ml_collections.ConfigDict) -> ClustersInfo:
  """Makes the clusters to train on, whose scale is that of all.

  Raises:
    ValueError: for a potential or options that do not fit.
  """
  made = _made(config, "train")
  sizes = made.present.sum(1)
  mean = made.energy.sum() / sizes.sum()
  off = made.energy / sizes - mean
  return ClustersInfo(
    atoms=made.present.shape[1],
    energy_mean=float(mean),
    energy_scale=float(np.sqrt(np.square(off).mean())),
    force_scale=float(np.sqrt(np.square(made.forces[made.present]).mean())),
    element=ELEMENT,
    num_eval_examples=config.eval_examples,
    num_train_examples=config.train_examples,
  )


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """Clusters of an epoch."""
  return config.train_examples


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless shuffled batches: the rows of this process.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the order and of rotations; clusters are those of `config.seed`.
    global_batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterator of dicts of numbers int32 [local_batch, A], 0 for padding;
    positions and forces float32 [local_batch, A, 3]; energy float32
    [local_batch]. In the potential's units.

  Raises:
    ValueError: for rows that no batch has, and for a config that does not fit.
  """
  read = _Reader(_made(config, "train"), config.rotate)
  return stream.train_iterator(
    read, config, seed=seed, batch_size=global_batch_size, rows=rows
  )


def eval_batches(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.IterDataset:
  """Every cluster to evaluate once, the same whatever the seed of a run.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterable of dicts as `train_iterator` has them, not turned, and weights
    float32 and index int32 [local_batch]; padding after the last has index -1
    and weight 0. It can be iterated again.

  Raises:
    ValueError: as `train_iterator`.
  """
  read = _Reader(_made(config, "eval"), rotate=False)
  return stream.eval_batches(read, config, batch_size=batch_size, rows=rows)
