"""What tasks of language models share: targets that count, of logits."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from tasks import losses
from tasks.base import Batch, Task, Variables, apply_in_training

_PLACES = ("positions", "segments")


class TokenTask(Task):
  """Tells targets by a language model; sums are over them by their weights.

  A target is of a place, or of the whole row, and then told by the mean of the
  logits of its tokens, padding left out. A subclass may have other `inputs` and
  other `nats`.
  """

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    return self.model.init(key, jnp.zeros((1, 1), jnp.int32))

  def weight(self, batch: Batch) -> jax.Array:
    """How many targets count."""
    return batch["weights"].sum()

  def inputs(
    self, batch: Batch
  ) -> tuple[Sequence[jax.Array], Mapping[str, jax.Array]]:
    """What the model is called with: arguments, and those by name."""
    # Tokens, or mixtures of them.
    given = batch["inputs"] if "inputs" in batch else batch["tokens"]
    return (given,), {name: batch[name] for name in _PLACES if name in batch}

  def nats(self, logits: jax.Array, batch: Batch) -> jax.Array:
    """The summed cross entropy of all targets that count."""
    return losses.weighted_cross_entropy(
      logits, batch["targets"], batch["weights"]
    )

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The sum of `nats`, and collections as they move."""
    given, named = self.inputs(batch)
    logits, collections = apply_in_training(
      self.model, variables, *given, **named, rngs={"dropout": key}
    )
    loss = self.nats(_of_targets(logits, batch), batch)
    return loss, (collections, {"weight": self.weight(batch), "loss": loss})

  def logits(self, variables: Variables, batch: Batch) -> jax.Array:
    """Those of targets, as in evaluation: [rows, targets, classes]."""
    given, named = self.inputs(batch)
    logits = self.model.apply(variables, *given, **named, train=False)
    return _of_targets(logits, batch)


def _of_targets(logits: jax.Array, batch: Batch) -> jax.Array:
  """Logits of the places, or their mean where one label is of the whole."""
  if batch["weights"].shape[1] == logits.shape[1]:
    return logits
  if "positions" not in batch:
    return logits.mean(1, keepdims=True)
  kept = (batch["positions"] >= 0)[..., None]
  total = jnp.where(kept, logits, 0.0).sum(1, keepdims=True)
  return total / jnp.maximum(kept.sum(1, keepdims=True), 1)
