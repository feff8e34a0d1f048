"""Normalisations as linear maps, with the statistics that they had.

A norm is no sum of what it does to parts. With its statistic as a constant it
is linear, and shares out what it gave exactly.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

# Those that are linear but for a statistic.
LINEAR = ("rms_norm", "layer_norm")


class FrozenNorm(NamedTuple):
  """norm(x) . direction = x . pulled(direction) + constant(direction).

  Attributes:
    scale: float32 [..., 1], one by the deviation or root mean square.
    factor: float32 [width].
    bias: float32 [width]; zeros if there is none.
    centred: whether the mean is subtracted.
  """

  scale: jax.Array
  factor: jax.Array
  bias: jax.Array
  centred: bool

  def pulled(self, direction: jax.Array) -> jax.Array:
    """Maps a direction after the norm, [..., width], to one before it."""
    direction = direction * _last(self.factor, direction) * self.scale
    if self.centred:
      direction = direction - direction.mean(-1, keepdims=True)
    return direction

  def constant(self, direction: jax.Array) -> jax.Array:
    """What the bias adds along a direction [..., width]: [...]."""
    return jnp.sum(direction * _last(self.bias, direction), axis=-1)


def freeze(
  model: nn.Module, params: Mapping[str, jax.Array], state: jax.Array
) -> FrozenNorm:
  """Freezes a norm of a transformer at the state that it reads.

  Args:
    model: a `models.transformer.Transformer`, whose `norm` is in LINEAR.
    params: of the norm: "scale", and "bias" maybe.
    state: [..., width], what it reads.
  """
  state = state.astype(jnp.float32)
  factor = params["scale"].astype(jnp.float32) + model.norm_offset
  bias = params.get("bias", jnp.zeros_like(factor)).astype(jnp.float32)
  centred = model.norm == "layer_norm"
  if centred:
    state = state - state.mean(-1, keepdims=True)
  square = jnp.mean(jnp.square(state), axis=-1, keepdims=True)
  scale = jax.lax.rsqrt(square + model.norm_epsilon)
  return FrozenNorm(scale, factor, bias, centred)


def _last(vector: jax.Array, like: jax.Array) -> jax.Array:
  return vector.reshape((1,) * (like.ndim - 1) + (-1,))
