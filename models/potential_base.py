"""What is common to potentials: what they are called with and return."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import input_checks, layers, registry, taps

# How forces are made: by a head of their own, as the slope of the energy, or
# not at all.
FORCES = ("direct", "gradient", "none")
REDUCTIONS = ("mean", "sum")


class Prediction(NamedTuple):
  """What a potential says of structures.

  Attributes:
    energy: of each, float32 [B].
    forces: on each atom, float32 [B, A, 3], zeros for padding; None for a model
      without them.
  """

  energy: jax.Array
  forces: jax.Array | None


class Potential(taps.Tapped):
  """From atoms to the energy of a structure and the forces on its atoms.

  A subclass has `_graph_of`, `_features` and `_heads`.

  Attributes:
    elements: kinds of atoms there are; an atom's number is below.
    cutoff: greatest distance of a neighbour, in the unit of positions.
    max_neighbors: of an atom; the nearest are kept.
    forces: "direct" for a head of their own, which rotations and a closed path
      do not respect; "gradient" for -dE/dx, which both do; "none".
    energy_reduce: whether the energy is the "mean" or the "sum" over the atoms.
    dtype: dtype of the computation; distances, angles, softmax and results are
      float32.
    param_dtype: dtype of the parameters.
    remat: whether layers are computed again in the backward pass.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`. With forces "gradient" it is the reference,
      since kernels have no second derivative.
  """

  elements: int = 90
  cutoff: float = 12.0
  max_neighbors: int = 20
  forces: str = "direct"
  energy_reduce: str = "mean"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32
  remat: bool = False
  implementation: str = "auto"

  def __call__(
    self, numbers: jax.Array, positions: jax.Array, train: bool = False
  ) -> Prediction:
    """Returns energies and forces.

    Args:
      numbers: of atoms, int32 [B, A], 1 to `elements` - 1; 0 for padding.
      positions: [B, A, 3], in the unit of `cutoff`.
      train: whether dropout is on, with the random bits "dropout".

    Raises:
      ValueError: for another shape, dtype or number of an atom.
    """
    self._check(numbers, positions)
    present = numbers > 0
    if self.forces != "gradient":
      return self._predict(numbers, positions, train)

    def energy_of(model, positions):
      energy = model._predict(numbers, positions, train).energy
      return energy.sum(), energy

    # A structure's energy does not depend on the positions of another.
    _, pull_back, energy = nn.vjp(
      energy_of, self, positions, has_aux=True, vjp_variables=False
    )
    slope = pull_back(jnp.ones((), jnp.float32))[-1]
    forces = jnp.where(present[..., None], -slope, 0.0)
    return Prediction(energy, forces.astype(jnp.float32))

  def example_inputs(self) -> dict[str, jax.Array]:
    """What `init` takes where the data do not say more: three atoms."""
    return {
      "numbers": jnp.ones((1, 3), jnp.int32),
      "positions": jnp.eye(3)[None],
    }

  def _reduced(self, of_atoms: jax.Array, present: jax.Array) -> jax.Array:
    """Makes energies [B] of what atoms have, [B, A]."""
    total = jnp.where(present, of_atoms, 0.0).sum(-1)
    if self.energy_reduce == "sum":
      return total
    return total / jnp.maximum(present.sum(-1), 1)

  def _check(self, numbers: jax.Array, positions: jax.Array) -> None:
    if self.forces not in FORCES:
      raise registry.unknown("forces", self.forces, FORCES)
    if self.energy_reduce not in REDUCTIONS:
      raise registry.unknown("energy_reduce", self.energy_reduce, REDUCTIONS)
    if not self.cutoff > 0:
      raise ValueError(f"cutoff is {self.cutoff}; it must be above 0")
    for field in ("elements", "max_neighbors"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field} is {getattr(self, field)}; it must be 1 or more"
        )
    input_checks.shape("numbers", numbers, ("batch", "atoms"), jnp.integer)
    input_checks.shape(
      "positions", positions, (*numbers.shape, 3), jnp.floating
    )
    if isinstance(numbers, jax.core.Tracer) or not numbers.size:
      return
    # Of an array of several processes nobody knows all.
    if isinstance(numbers, jax.Array) and not numbers.is_fully_addressable:
      return
    numbers = np.asarray(numbers)
    wrong = numbers[(numbers < 0) | (numbers >= self.elements)]
    if wrong.size:
      raise ValueError(
        f"numbers has {wrong.flat[0]}; atoms are 1 to {self.elements - 1}, as "
        "the model has it from elements, and 0 is padding"
      )
