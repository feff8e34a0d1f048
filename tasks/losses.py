"""Losses of classes, float32: of examples, and of what has weights."""

import jax
import jax.numpy as jnp
import optax

LOSSES = ("softmax", "sigmoid")


def smooth_labels(targets: jax.Array, smoothing: float) -> jax.Array:
  """Mixes targets `[batch, classes]` with the uniform distribution.

  y' = (1 - s) y + s / classes (Szegedy et al. 2016, section 7).
  """
  return targets * (1 - smoothing) + smoothing / targets.shape[-1]


def classification_loss(
  name: str, logits: jax.Array, targets: jax.Array
) -> jax.Array:
  """Cross-entropy of `logits` `[batch, classes]` with soft `targets`.

  Args:
    name: "softmax", or "sigmoid" for one binary loss per class, summed.
    logits: any float dtype; the loss is computed in float32.
    targets: probabilities, of the shape of `logits`.

  Returns:
    float32 `[batch]`, in nats.

  Raises:
    ValueError: for an unknown name.
  """
  logits = logits.astype(jnp.float32)
  if name == "softmax":
    return optax.softmax_cross_entropy(logits, targets)
  if name == "sigmoid":
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
  raise ValueError(
    f"loss.name={name!r} is not known; choose from {', '.join(LOSSES)}."
  )


def weighted_cross_entropy(
  logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
  """Nats of all targets that count together.

  Args:
    logits: float32 [..., classes].
    targets: integers [...].
    weights: [...]; 0 is what does not count, whatever its logits are.
  """
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  # `where`, since padding may be infinite and 0 * inf is NaN.
  return jnp.where(weights > 0, nats * weights, 0).sum()
