"""Energies of structures of atoms, and the forces on the atoms."""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline import clusters
from models.potential_base import Prediction
from tasks.base import (
  Batch,
  Task,
  Variables,
  apply_in_training,
  create_model,
)
from training import evaluation
from training.ranges import Number


class Potentials(Task):
  """Predicts energies and forces; sums are over structures.

  The model's energy is that of a structure less the mean energy of its atoms,
  in units of the data's deviation, and its forces have a unit of their own, or
  that of the energy where they are its slope. The loss of a structure, in these
  units, is `energy_weight` times the absolute error of the energy, divided by
  the atoms, and `force_weight` times the mean length of the forces' errors:
  EScAIP's losses, whose force term is a mean over the atoms of a batch and not,
  as here, first of a structure.
  """

  room = clusters
  unit = "structure"
  directions = types.MappingProxyType(
    {"force_mae": "min", "energy_mae": "min", "loss": "min"}
  )
  curves = ("loss", "energy_mae", "force_mae")
  ranges = types.MappingProxyType(
    {"energy_weight": Number(0), "force_weight": Number(0)}
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model.

    Raises:
      ValueError: for a field of the config that does not fit, as weights of
        which nothing is left, or an element that the model does not know.
    """
    super().__init__(config, info)
    self.model = create_model(config, "potential")
    if self.model.forces == "none" and config.force_weight:
      raise ValueError(
        f"force_weight={config.force_weight}, but model.forces='none': it must "
        "be 0, or the model have forces."
      )
    if not (config.force_weight or config.energy_weight):
      raise ValueError(
        "energy_weight=0 and force_weight=0 leave nothing to learn."
      )
    if info.element >= self.model.elements:
      raise ValueError(
        f"model.elements={self.model.elements}, but the data have an atom of "
        f"number {info.element}: it must be above."
      )

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only this task has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="escaip_md22"))
    config.data = clusters.default_config()
    # Of an energy's error per atom, and of the mean length of forces' errors.
    config.energy_weight = 5.0
    config.force_weight = 20.0
    best = ml_collections.ConfigDict(dict(best_metric="force_mae"))
    config.checkpoint = best
    return config

  def metric_names(self) -> tuple[str, ...]:
    """Without those of forces where the model has none."""
    if self.model.forces == "none":
      return ("energy_mae", "loss")
    return tuple(self.directions)

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """numbers, positions, energy and forces; weights in evaluation."""
    atoms = self.info.atoms
    spec = {
      "numbers": ((rows, atoms), jnp.int32),
      "positions": ((rows, atoms, 3), jnp.float32),
      "energy": ((rows,), jnp.float32),
      "forces": ((rows, atoms, 3), jnp.float32),
    }
    if not train:
      spec["weights"] = ((rows,), jnp.float32)
    return {
      name: jax.ShapeDtypeStruct(shape, dtype)
      for name, (shape, dtype) in spec.items()
    }

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    return self.model.init(key, **self.model.example_inputs())

  def weight(self, batch: Batch) -> jax.Array:
    """How many structures count."""
    if "weights" in batch:
      return batch["weights"].sum()
    return jnp.asarray(batch["energy"].size, jnp.float32)

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed loss, and means of both errors in the data's units."""
    made, collections = apply_in_training(
      self.model,
      variables,
      batch["numbers"],
      batch["positions"],
      rngs={"dropout": key},
    )
    sums = self._sums(made, batch)
    sums.pop("atoms")
    return sums["loss"], (collections, sums)

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over structures: weight, atoms, loss, energy_mae, force_mae."""
    made = self.model.apply(
      variables, batch["numbers"], batch["positions"], train=False
    )
    return self._sums(made, batch)

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means over structures, and how many there were, of how many atoms.

    Raises:
      ValueError: if nothing counted.
    """
    result = evaluation.means(totals, ("atoms",))
    return {**result, "structures": float(totals["weight"])}

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "energy off by 0.0123 an atom, forces by 0.0456, on 200 structures"."""
    forces = ""
    if "force_mae" in result:
      forces = f", forces by {result['force_mae']:.4f}"
    return (
      f"energy off by {result['energy_mae']:.4f} an atom{forces}, on "
      f"{result['structures']:g} structures"
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """energy_mae of an atom, force_mae of a coordinate, loss, structures."""
    return dict(result)

  def predict(
    self, variables: Variables, numbers: jax.Array, positions: jax.Array
  ) -> Prediction:
    """Energies [B] and forces [B, A, 3] in the data's units."""
    made = self.model.apply(variables, numbers, positions, train=False)
    return self.in_units(made, numbers)

  def in_units(self, made: Prediction, numbers: jax.Array) -> Prediction:
    """What the model said, [B, A] atoms, in the data's units."""
    atoms = (numbers > 0).sum(-1)
    info = self.info
    energy = made.energy * info.energy_scale + info.energy_mean * atoms
    if made.forces is None:
      return Prediction(energy, None)
    direct = self.model.forces == "direct"
    scale = info.force_scale if direct else info.energy_scale
    return Prediction(energy, made.forces * scale)

  def _sums(self, made: Prediction, batch: Batch) -> dict[str, jax.Array]:
    """Sums over structures, by their weights."""
    weights = batch.get("weights", jnp.ones_like(batch["energy"]))
    present = batch["numbers"] > 0
    # Where a structure is empty, nothing is divided by nothing.
    atoms = jnp.maximum(present.sum(-1), 1).astype(jnp.float32)
    made = self.in_units(made, batch["numbers"])
    energy_error = jnp.abs(made.energy - batch["energy"]) / atoms
    loss = self.config.energy_weight * energy_error / self.info.energy_scale
    sums = {"weight": weights.sum(), "atoms": (weights * atoms).sum()}
    sums["energy_mae"] = (weights * energy_error).sum()
    if made.forces is not None:
      off = jnp.where(present[..., None], made.forces - batch["forces"], 0.0)
      force_error = jnp.abs(off).sum((1, 2)) / (3 * atoms)
      sums["force_mae"] = (weights * force_error).sum()
      length = _lengths(off).sum(-1) / atoms
      loss += self.config.force_weight * length / self.info.force_scale
    return {**sums, "loss": (weights * loss).sum()}


def _lengths(x: jax.Array) -> jax.Array:
  """Lengths of vectors [..., 3]; their slope at zero is zero."""
  square = jnp.square(x).sum(-1)
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0)
