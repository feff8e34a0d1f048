"""What tasks of generators have in common: a loss, and samples to judge."""

import abc
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tasks import visual_batches
from tasks.base import Batch, Task, Variables


class Generator(Task):
  """Learns to make images or videos, given a class or a text.

  Sums are over examples with mask 1. Each is prepared with a key, from which
  all randomness of its loss comes: micro-batches and devices change none of it,
  and evaluation, whose keys are of the examples' places in the split, measures
  the same at any time.

  Attributes:
    quality: the module that makes samples and measures them: `options_of`,
      `measure` and `describe`, as `tasks.sample_evaluation` has; of the class.
  """

  directions = types.MappingProxyType({"loss": "min"})
  counts = ("damaged",)
  quality: Any

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """What is learned, what it is of, and mask; see `visual_batches.spec`."""
    return visual_batches.spec(self.info, rows, train=train)

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    return self.model.init(key, **self.model.example_inputs())

  def weight(self, batch: Batch) -> jax.Array:
    """How many examples count."""
    return batch["mask"].sum()

  @abc.abstractmethod
  def losses(self, variables: Variables, batch: Batch) -> jax.Array:
    """The loss of each example of a prepared batch, float32 [batch]."""

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed loss of examples; no collection changes."""
    # Each example has its own randomness.
    del key
    sums = self.sums(variables, batch)
    collections = {n: x for n, x in variables.items() if n != "params"}
    return sums["loss"], (collections, sums)

  def sums(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """Sums of a prepared batch."""
    mask = batch["mask"]
    losses = self.losses(variables, batch)
    return {
      "weight": mask.sum(),
      # `where`, since a padded row may be infinite and 0 * inf is NaN.
      "loss": jnp.where(mask > 0, losses * mask, 0).sum(),
      "damaged": batch["damaged"].sum(dtype=jnp.float32),
    }

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means, and how many examples were there.

    Raises:
      ValueError: if none was usable.
    """
    result = super().summarize(totals)
    return result | {"examples": int(totals["weight"])}

  @classmethod
  def describe(cls, result: Mapping[str, Any]) -> str:
    """ "loss 0.3912 on 360 images", and what samples are like if some are."""
    damaged = result.get("damaged", 0)
    parts = [
      f"loss {result['loss']:.4f} on {result['examples']} {cls.unit}s",
      *([f"{damaged} damaged ones left out"] if damaged else []),
    ]
    if "samples" in result:
      parts += cls.quality.describe(result)
    return ", ".join(parts)

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """examples, loss, and all that was measured of samples."""
    return {name: result[name] for name in result if name != "damaged"}

  def evaluate(self, variables, mesh, progress, **options):
    """The loss of the split; then samples are made and measured."""
    options = self.quality.options_of(self.config, **options)
    result = self.evaluate_split(mesh).run(variables, progress=progress)
    if not options["num_samples"]:
      return result
    return result | self.quality.measure(self, variables, options, progress)
