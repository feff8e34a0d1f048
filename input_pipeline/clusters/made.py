"""Clusters: atoms that are dropped next to each other and go downhill."""

import functools
from typing import NamedTuple

import numpy as np

from input_pipeline.clusters.energies import Potential

# Of the least distance of an atom that is dropped, and of its distance to the
# one it is dropped at.
_LEAST = 0.9
_AT = (1.0, 1.3)
# A step downhill, and how far it goes at most in each coordinate.
_STEP, _FARTHEST = 0.005, 0.05


class Clusters(NamedTuple):
  """Structures with what is to be learned of them.

  Attributes:
    present: bool [N, A], False for padding, which is last.
    positions: float64 [N, A, 3], zeros for padding; the mean of a cluster is 0.
    energy: float64 [N].
    forces: float64 [N, A, 3].
  """

  present: np.ndarray
  positions: np.ndarray
  energy: np.ndarray
  forces: np.ndarray


@functools.lru_cache(maxsize=8)
def clusters(
  potential: Potential,
  split: int,
  seed: int,
  count: int,
  atoms: tuple[int, int],
  relaxation: tuple[int, int],
  jitter: float,
) -> Clusters:
  """Makes clusters; each is a function of all but `count`, and of its number.

  Args:
    potential: goes downhill by pairs alone, and says energies and forces.
    split: tells the numbers of one split from those of the other.
    seed: of the clusters.
    count: how many, N.
    atoms: of a cluster, least and most, A.
    relaxation: steps downhill, least and most.
    jitter: deviation of what is added to each coordinate.
  """
  present = np.zeros((count, atoms[1]), bool)
  positions = np.zeros((count, atoms[1], 3))
  noise = np.zeros_like(positions)
  steps = np.zeros(count, np.int64)
  for i in range(count):
    rng = np.random.default_rng((split, seed, i))
    own = rng.integers(*atoms, endpoint=True)
    present[i, :own] = True
    positions[i, :own] = _dropped(rng, own)
    steps[i] = rng.integers(*relaxation, endpoint=True)
    noise[i, :own] = jitter * rng.standard_normal((own, 3))
  for step in range(steps.max()):
    # What is done stands still.
    on = np.flatnonzero(steps > step)
    forces = potential.pair_forces(positions[on], present[on])
    positions[on] += np.clip(_STEP * forces, -_FARTHEST, _FARTHEST)
  positions += noise
  middle = positions.sum(1) / present.sum(1, keepdims=True)
  positions = np.where(present[..., None], positions - middle[:, None], 0.0)
  return Clusters(
    present, positions, *potential.energy_and_forces(positions, present)
  )


def _dropped(rng: np.random.Generator, count: int) -> np.ndarray:
  """Positions [count, 3], each next to one before, none too near another."""
  made = np.zeros((1, 3))
  while len(made) < count:
    direction = rng.standard_normal(3)
    direction *= rng.uniform(*_AT) / np.linalg.norm(direction)
    new = made[rng.integers(len(made))] + direction
    if np.linalg.norm(made - new, axis=1).min() > _LEAST:
      made = np.append(made, new[None], axis=0)
  return made


def rotation(rng: np.random.Generator) -> np.ndarray:
  """A rotation [3, 3], any as likely as any other."""
  made, upper = np.linalg.qr(rng.standard_normal((3, 3)))
  # Unique, and so uniform.
  made = made * np.sign(np.diag(upper))
  return made * np.linalg.det(made)
