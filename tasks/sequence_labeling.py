"""Labels of sequences: one for each place, or one for the whole."""

import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline import sequences
from tasks.base import Batch, Variables, create_model
from tasks.token_task import TokenTask
from training import evaluation

# What examples are told apart by, which training does not read.
_EVALUATED = ("group", "elements")


class SequenceLabeling(TokenTask):
  """Tells labels of sequences; sums are over targets by their weights.

  The model is a language model, causal or not. Labels that are not all tokens
  need a model with `tied_head=False`, whose `classes` they give.
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

    See `input_pipeline.sequences.sources.Source`; group and elements in
    evaluation only.
    """
    arrays = self.info.arrays if train else self.info.eval_arrays
    return {
      name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype)
      for name, x in arrays.items()
      if not (train and name in _EVALUATED)
    }

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over labels: weight, loss in nats, accuracy.

    With groups also group_weight and group_accuracy, [groups]; with elements
    element_weight and element_accuracy.
    """
    return self._sums(self.logits(variables, batch), batch)

  def _sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    targets, weights = batch["targets"], batch["weights"]
    right = weights * (logits.argmax(-1) == targets)
    sums = {
      "weight": self.weight(batch),
      "loss": self.nats(logits, batch),
      "accuracy": right.sum(),
    }
    if self.info.groups:
      group = batch["group"]
      if group.ndim == 1:
        group = group[:, None]
      member = jax.nn.one_hot(group, len(self.info.groups))
      sums["group_weight"] = (weights[..., None] * member).sum((0, 1))
      sums["group_accuracy"] = (right[..., None] * member).sum((0, 1))
    if "elements" in batch:
      counted = jnp.where(weights > 0, batch["elements"], -1)
      sums |= _of_elements(logits, targets, counted)
    return sums

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means, of the groups that there were too, and the number of labels.

    Raises:
      ValueError: if nothing counted.
    """
    totals = dict(totals)
    weights = totals.pop("group_weight", ())
    right = totals.pop("group_accuracy", ())
    elements = totals.pop("element_weight", None)
    right_elements = totals.pop("element_accuracy", None)
    result = evaluation.means(totals)
    for name, own, weight in zip(self.info.groups, right, weights, strict=True):
      if weight:
        result[f"accuracy_{name}"] = float(own / weight)
    if elements is not None:
      result["element_accuracy"] = float(right_elements / elements)
    return {**result, "labels": float(totals["weight"])}

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "accuracy 98.12 %, loss 0.0612 on 4000 labels".

    Of elements as well, if there are: ", 97.03 % of elements".
    """
    elements = ""
    if "element_accuracy" in result:
      elements = f", {result['element_accuracy']:.2%} of elements"
    return (
      f"accuracy {result['accuracy']:.2%}{elements}, loss {result['loss']:.4f} "
      f"on {result['labels']:g} labels"
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """loss, accuracy, that of each group and of elements, and labels."""
    return dict(result)


def _of_elements(
  logits: jax.Array, targets: jax.Array, elements: jax.Array
) -> dict[str, jax.Array]:
  """How many elements there are, and how many are told right.

  What is told of an element is the class with the greatest sum of
  probabilities over its places, as in SelectivBench (arXiv 2601.12598); its
  places have one target. Places of element -1 are left out, so padding does
  not count, which the paper's code has in its mean.
  """

  def of_row(logits, targets, elements):
    sum_up = functools.partial(
      jax.ops.segment_sum,
      segment_ids=jnp.where(elements < 0, len(elements), elements),
      num_segments=len(elements),
    )
    places = sum_up(jnp.ones(elements.shape, jnp.int32))
    told = sum_up(jax.nn.softmax(logits)).argmax(-1)
    right = told * places == sum_up(targets)
    there = places > 0
    return there.sum(), (right & there).sum()

  count, right = jax.vmap(of_row)(logits, targets, elements)
  return {
    "element_weight": count.sum().astype(jnp.float32),
    "element_accuracy": right.sum().astype(jnp.float32),
  }
