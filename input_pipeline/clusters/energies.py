"""Energies and forces of clusters in closed form, in float64.

Lengths are in the distance at which the pair's energy is 0 (Lennard-Jones) or
least (Morse), energies in the depth of the pair's well. Arrays of clusters are
padded: N clusters, A atoms.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipeline import checks


@dataclasses.dataclass(frozen=True)
class Potential:
  """A sum over pairs of atoms and, if wanted, over triples.

  Attributes:
    three_body: strength nu of Axilrod and Teller's energy of a triple,
      nu (1 + 3 cos a cos b cos c) / (r_ab r_bc r_ca)^3, with the angles a, b
      and c of its triangle; argon has about 0.07.
  """

  three_body: float = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      checks.check_number(field.name, value)

  def pair(self, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy of a pair and its derivative by the square of the distance."""
    raise NotImplementedError

  def energy_and_forces(
    self, positions: np.ndarray, present: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns energies [N] and forces [N, A, 3].

    Args:
      positions: float64 [N, A, 3].
      present: bool [N, A]; what is not there has no force.
    """
    energy, slope = self._pairs(positions, present)
    if self.three_body:
      more, more_slope = _triples(_squares(positions, present))
      energy = energy + self.three_body * more
      slope = slope + self.three_body * more_slope
    return energy, _forces(positions, slope)

  def pair_forces(
    self, positions: np.ndarray, present: np.ndarray
  ) -> np.ndarray:
    """Forces of pairs alone, [N, A, 3]."""
    return _forces(positions, self._pairs(positions, present)[1])

  def _pairs(self, positions, present):
    # Of what is no pair, infinity, with neither energy nor slope.
    square = _squares(positions, present)
    pair = np.isfinite(square)
    energy, slope = self.pair(np.where(pair, square, 1.0))
    energy, slope = (np.where(pair, x, 0.0) for x in (energy, slope))
    return energy.sum((1, 2)) / 2, slope


@dataclasses.dataclass(frozen=True)
class LennardJones(Potential):
  """4 (r^-12 - r^-6)."""

  def pair(self, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sixth = square**-3
    energy = 4 * (sixth**2 - sixth)
    return energy, -12 * (2 * sixth**2 - sixth) / square


@dataclasses.dataclass(frozen=True)
class Morse(Potential):
  """(1 - exp(-steepness (r - 1)))^2 - 1.

  Attributes:
    steepness: of the wall; 6 is as long in range as Lennard-Jones.
  """

  steepness: float = 6.0

  def pair(self, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance = np.sqrt(square)
    decay = np.exp(-self.steepness * (distance - 1))
    slope = 2 * self.steepness * (1 - decay) * decay
    return (1 - decay) ** 2 - 1, slope / (2 * distance)


POTENTIALS: Mapping[str, type[Potential]] = {
  "lennard_jones": LennardJones,
  "morse": Morse,
}


def create(name: str, options: Mapping[str, Any]) -> Potential:
  """The potential of a name.

  Args:
    name: a key of POTENTIALS.
    options: fields that are not its defaults.

  Raises:
    ValueError: if there is no such potential, it has no such option, or a value
      is no number.
  """
  if name not in POTENTIALS:
    raise ValueError(
      f"potential is {name!r}, but must be one of {', '.join(POTENTIALS)}."
    )
  known = [field.name for field in dataclasses.fields(POTENTIALS[name])]
  for option in options:
    if option not in known:
      raise ValueError(
        f"options has {option!r}, but {name} has only {', '.join(known)}."
      )
  return POTENTIALS[name](**options)


def _squares(positions: np.ndarray, present: np.ndarray) -> np.ndarray:
  """Squares of distances [N, A, A], infinite between what is no pair."""
  square = np.square(positions[:, :, None] - positions[:, None]).sum(-1)
  pair = present[:, :, None] & present[:, None]
  pair &= ~np.eye(positions.shape[1], dtype=bool)
  return np.where(pair, square, np.inf)


def _forces(positions: np.ndarray, slope: np.ndarray) -> np.ndarray:
  """Of the energy's derivatives by the squares of distances, [N, A, A]."""
  own = slope.sum(2, keepdims=True) * positions
  return -2 * (own - slope @ positions)


def _triples(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Axilrod and Teller's energy [N] and derivatives by squares [N, A, A].

  With the squares p, q, s of a triangle's sides the energy is
  (p q s)^(-3/2) + 3/8 u v w (p q s)^(-5/2), where u = q + s - p and so on.
  """
  p, q, s = square[:, :, :, None], square[:, None], square[:, :, None]
  triple = np.isfinite(p) & np.isfinite(q) & np.isfinite(s)
  p, q, s = (np.where(triple, x, 1.0) for x in (p, q, s))
  u, v, w = q + s - p, p + s - q, p + q - s
  sides = p * q * s
  angular = 0.375 * u * v * w * sides**-2.5
  energy = np.where(triple, sides**-1.5 + angular, 0.0)
  slope = -1.5 * sides**-1.5 / p - 2.5 * angular / p
  slope += 0.375 * (u * w + u * v - v * w) * sides**-2.5
  # Of the pair (i, j), over all k.
  slope = np.where(triple, slope, 0.0).sum(3)
  # A triple is in six orders there.
  return energy.sum((1, 2, 3)) / 6, slope
