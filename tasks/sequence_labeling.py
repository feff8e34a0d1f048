"""Labels of sequences: one for each place, or one for the whole."""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline import sequences
from tasks import losses
from tasks.base import (
  Batch,
  Task,
  Variables,
  apply_in_training,
  create_model,
)
from training import evaluation

_PLACES = ("positions", "segments")


class SequenceLabeling(Task):
  """Tells labels of sequences; sums are over targets by their weights.

  The model is a language model, causal or not. A label of the whole sequence
  is told by the mean of the logits of its tokens, padding left out. Labels
  that are not all tokens need a model with `tied_head=False`, whose `classes`
  they give.
  """

  room = sequences
  unit = "label"
  directions = types.MappingProxyType({"loss": "min", "accuracy": "max"})
  curves = ("loss", "accuracy")
  given = ("dtype", "vocabulary_size", "classes")

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model, for the tokens and labels of `info`.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    # Labels that are tokens may have the embeddings for a head.
    other = info.classes != info.vocabulary_size
    self.model = create_model(
      config,
      "language",
      vocabulary_size=info.vocabulary_size,
      classes=info.classes if other else 0,
    )
    self.units_per_example = info.arrays["targets"].size

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only this task has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="transformer"))
    config.data = sequences.default_config()
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="loss"))
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """What an example of the source has, `rows` times.

    See `input_pipeline.sequences.sources.Source`; group in evaluation only.
    """
    arrays = self.info.arrays if train else self.info.eval_arrays
    return {
      name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype)
      for name, x in arrays.items()
      if not (train and name == "group")
    }

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    return self.model.init(key, jnp.zeros((1, 1), jnp.int32))

  def weight(self, batch: Batch) -> jax.Array:
    """How many labels count."""
    return batch["weights"].sum()

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed cross entropy in nats, and collections as they move."""
    logits, collections = apply_in_training(
      self.model,
      variables,
      inputs_of(batch),
      **places_of(batch),
      rngs={"dropout": key},
    )
    loss = losses.weighted_cross_entropy(
      _of_targets(logits, batch), batch["targets"], batch["weights"]
    )
    return loss, (collections, {"weight": self.weight(batch), "loss": loss})

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over labels: weight, loss in nats, accuracy.

    With groups also group_weight and group_accuracy, [groups].
    """
    logits = self.model.apply(
      variables, inputs_of(batch), **places_of(batch), train=False
    )
    return self._sums(_of_targets(logits, batch), batch)

  def _sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    targets, weights = batch["targets"], batch["weights"]
    right = weights * (logits.argmax(-1) == targets)
    sums = {
      "weight": self.weight(batch),
      "loss": losses.weighted_cross_entropy(logits, targets, weights),
      "accuracy": right.sum(),
    }
    if self.info.groups:
      group = batch["group"]
      if group.ndim == 1:
        group = group[:, None]
      member = jax.nn.one_hot(group, len(self.info.groups))
      sums["group_weight"] = (weights[..., None] * member).sum((0, 1))
      sums["group_accuracy"] = (right[..., None] * member).sum((0, 1))
    return sums

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means, of the groups that there were too, and the number of labels.

    Raises:
      ValueError: if nothing counted.
    """
    totals = dict(totals)
    weights = totals.pop("group_weight", ())
    right = totals.pop("group_accuracy", ())
    result = evaluation.means(totals)
    for name, own, weight in zip(self.info.groups, right, weights, strict=True):
      if weight:
        result[f"accuracy_{name}"] = float(own / weight)
    return {**result, "labels": float(totals["weight"])}

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "accuracy 98.12 %, loss 0.0612 on 4000 labels"."""
    return (
      f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f} on "
      f"{result['labels']:g} labels"
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """loss, accuracy, that of each group, and labels."""
    return dict(result)


def inputs_of(batch: Batch) -> jax.Array:
  """Tokens, or mixtures of them."""
  return batch["inputs"] if "inputs" in batch else batch["tokens"]


def places_of(batch: Batch) -> dict[str, jax.Array]:
  """Segments and positions, where a batch has them."""
  return {name: batch[name] for name in _PLACES if name in batch}


def _of_targets(logits: jax.Array, batch: Batch) -> jax.Array:
  """Logits of the places, or their mean where one label is of the whole."""
  if batch["targets"].shape[1] == logits.shape[1]:
    return logits
  if "positions" not in batch:
    return logits.mean(1, keepdims=True)
  kept = (batch["positions"] >= 0)[..., None]
  total = jnp.where(kept, logits, 0.0).sum(1, keepdims=True)
  return total / jnp.maximum(kept.sum(1, keepdims=True), 1)
