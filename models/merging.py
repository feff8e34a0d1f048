"""How a layer's output joins the stream that it read: gates by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, registry

KINDS = ("none", "additive", "learned_rate", "input_dependent", "coupled")


class Merge(nn.Module):
  """G(x, f) of "Deconstructing Recurrence, Attention, and Gating".

  The paper (arXiv 2410.02654) names additive, learned-rate and input-dependent
  gates; the formulas could not be read, and are ours.

    none             f
    additive         x + f
    learned_rate     x + a f, a number a channel that begins at one
    input_dependent  sigmoid(W_1 x + b_1) x + sigmoid(W_2 x + b_2) f
    coupled          (1 - g) x + g f, g = sigmoid(W x + b), as highways have it

  Gates begin mostly open for x: b_1 at two and b at minus one, so that a stack
  of them passes on what it reads; b_2 begins at zero.

  Attributes:
    kind: one of KINDS.
    dtype: dtype of the gates' products; x and f keep theirs.
    param_dtype: dtype of the parameters.
  """

  kind: str
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, f: jax.Array) -> jax.Array:
    """Merges arrays [..., width] into one like them.

    Raises:
      ValueError: if there is no such kind.
    """
    match self.kind:
      case "none":
        return f
      case "additive":
        return x + f
      case "learned_rate":
        ones = nn.initializers.ones
        rate = self.param("rate", ones, x.shape[-1:], self.param_dtype)
        return x + f * rate.reshape((1,) * (x.ndim - 1) + (-1,))
      case "input_dependent":
        skip, new = self._gate(x, "skip", 2.0), self._gate(x, "new", 0.0)
        return skip * x + new * f
      case "coupled":
        return x + self._gate(x, "transform", -1.0) * (f - x)
    raise registry.unknown("gate", self.kind, KINDS)

  def _gate(self, x: jax.Array, name: str, bias: float) -> jax.Array:
    logits = layers.Dense(
      x.shape[-1],
      bias_init=nn.initializers.constant(bias),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name=name,
    )(x)
    return nn.sigmoid(logits.astype(jnp.float32))
