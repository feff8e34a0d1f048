"""Labels of pairs of tokens, and networks that learn their model's biases."""

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from input_pipeline import sequences
from models import pair_attention
from tasks import losses
from tasks.base import Batch, Task, Variables, create_model
from training import paths

# Where the networks of a model are, as `training.paths` says.
_NETWORKS = ("(query|key)_network",)


class PairCompletion(Task):
  """Tells labels of pairs; sums are over the pairs that count.

  With `config.imitate` it is the networks of `models.pair_attention` that
  learn, and nothing else: the loss is the mean square between biases and the
  products of factors, summed over layers, as in "FlashBias" (arXiv 2505.12044).
  The rest is of a run without it: `config.init.weights`. Layers see the true
  biases then, and evaluation what `config.model.bias` says.
  """

  room = sequences
  unit = "pair"
  directions = types.MappingProxyType(
    {"loss": "min", "accuracy": "max", "imitation": "min"}
  )
  curves = ("loss", "accuracy")
  given = ("dtype", "classes")
  added = _NETWORKS

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model.

    Raises:
      ValueError: for a field of the config that does not fit, as a source of
        examples that have no pairs.
    """
    super().__init__(config, info)
    if "pairs" not in info.arrays:
      raise ValueError(
        f"data.source={config.data.source!r} has {', '.join(info.arrays)}, but "
        f"task={config.task!r} needs one with pairs, as 'distances'."
      )
    self.model = create_model(config, "pair", classes=info.classes)
    if config.imitate and not self.model.bias_rank:
      raise ValueError(
        "imitate=True needs networks: model.bias_rank is 0, and must be at "
        "least 1."
      )
    self.units_per_example = info.arrays["targets"].size

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only this task has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="pair_attention"))
    config.data = sequences.default_config()
    config.data.source = "distances"
    config.imitate = False
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="loss"))
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """What an example of the source has, `rows` times."""
    arrays = self.info.arrays if train else self.info.eval_arrays
    return {
      name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype)
      for name, x in arrays.items()
    }

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    tokens, pairs = (
      jnp.zeros((1, *self.info.arrays[name].shape))
      for name in ("inputs", "pairs")
    )
    return self.model.init(key, tokens, pairs)

  def weight(self, batch: Batch) -> jax.Array:
    """How many pairs count."""
    return batch["weights"].sum()

  def metric_names(self) -> tuple[str, ...]:
    """Without "imitation" where there are no networks."""
    known = tuple(self.directions)
    return known if self.model.bias_rank else known[:-1]

  def trainable(self) -> Callable[[str], bool] | None:
    """The networks alone if they are to imitate."""
    if not self.config.imitate:
      return None
    return lambda name: paths.first_match(_NETWORKS, name) is not None

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed cross entropy in nats, or the error of the networks."""
    del key
    if self.config.imitate:
      loss = self._imitation(variables, batch)
    else:
      logits = self.model.apply(variables, batch["inputs"], batch["pairs"])
      loss = losses.weighted_cross_entropy(
        logits, batch["targets"], batch["weights"]
      )
    collections = {n: x for n, x in variables.items() if n != "params"}
    return loss, (collections, {"weight": self.weight(batch), "loss": loss})

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over pairs: weight, loss in nats, accuracy; and imitation."""
    logits = self.model.apply(variables, batch["inputs"], batch["pairs"])
    targets, weights = batch["targets"], batch["weights"]
    sums = {
      "weight": self.weight(batch),
      "loss": losses.weighted_cross_entropy(logits, targets, weights),
      "accuracy": (weights * (logits.argmax(-1) == targets)).sum(),
    }
    if self.model.bias_rank:
      sums["imitation"] = self._imitation(variables, batch)
    return sums

  def _imitation(self, variables: Variables, batch: Batch) -> jax.Array:
    """Errors of examples, each as often as it has pairs that count."""
    error = self.model.clone(bias="pair").apply(
      variables,
      batch["inputs"],
      batch["pairs"],
      method=pair_attention.PairModel.imitation,
    )
    return (error * batch["weights"].sum((1, 2))).sum()

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "accuracy 81.20 %, loss 0.5012", and the imitation of networks."""
    text = f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f}"
    if "imitation" in result:
      text += f", mean square of the biases' error {result['imitation']:.4f}"
    return text

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """loss, accuracy, imitation, and the number of pairs."""
    return dict(result)
