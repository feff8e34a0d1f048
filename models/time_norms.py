"""Normalisation with factors that change with time (TD-LN of DiMR).

arXiv 2406.09416, section 3.2: a vector moves along a line between two that are
learned, as a sigmoid of the time, at a speed and from a place that are learned
for each channel. That is all a network sees of the time, for a hundredth of
what the dense layers of adaptive norms cost.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Beside the root and not under it, as released.
RMS_EPSILON = 1e-8


class TimeVector(nn.Module):
  """s noisy + (1 - s) clean with s = sigmoid((1 + slope) tau + offset).

  Both ends begin as the same vector, so that the slopes learn nothing before
  the ends part.

  Attributes:
    size: number of channels.
    end_init: initializer of both ends.
    param_dtype: dtype of the four parameters, [size] each.
  """

  size: int
  end_init: nn.initializers.Initializer = nn.initializers.ones
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tau: jax.Array) -> jax.Array:
    """Maps times [batch], from -1 (no noise) to 1, to float32 [batch, size]."""
    noisy, clean, slope, offset = (
      self.param(name, init, (self.size,), self.param_dtype)
      .astype(jnp.float32)
      .reshape(1, self.size)
      for name, init in (
        ("noisy", self.end_init),
        ("clean", self.end_init),
        ("slope", nn.initializers.zeros),
        ("offset", nn.initializers.zeros),
      )
    )
    share = nn.sigmoid((1 + slope) * tau.astype(jnp.float32)[:, None] + offset)
    return clean + share * (noisy - clean)


class TimeLayerNorm(nn.Module):
  """Layer norm of the last axis, scale and bias by `TimeVector`; in float32.

  Attributes:
    epsilon: added to the variance.
    dtype: dtype of the result.
    param_dtype: dtype of the parameters.
  """

  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, tau: jax.Array) -> jax.Array:
    """Normalises [batch, ..., channels] at the times [batch] of its rows."""
    size = x.shape[-1]
    scale = TimeVector(size, param_dtype=self.param_dtype, name="scale")(tau)
    bias = TimeVector(
      size, nn.initializers.zeros, self.param_dtype, name="bias"
    )(tau)
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x).mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(variance + self.epsilon)
    return (x * _of_rows(scale, x) + _of_rows(bias, x)).astype(self.dtype)


class TimeRMSNorm(nn.Module):
  """x / (sqrt(mean(x^2)) + 1e-8), its scale by `TimeVector`; in float32.

  Attributes:
    dtype: dtype of the result.
    param_dtype: dtype of the parameters.
  """

  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, tau: jax.Array) -> jax.Array:
    """Normalises [batch, ..., channels] at the times [batch] of its rows."""
    size = x.shape[-1]
    scale = TimeVector(size, param_dtype=self.param_dtype, name="scale")(tau)
    x = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    # A bound below: the slope of the root at 0 is infinite.
    root = jnp.sqrt(jnp.maximum(square, 1e-30))
    return (x / (root + RMS_EPSILON) * _of_rows(scale, x)).astype(self.dtype)


def _of_rows(vectors: jax.Array, x: jax.Array) -> jax.Array:
  """Makes [batch, channels] broadcast to [batch, ..., channels]."""
  batch, size = vectors.shape
  return vectors.reshape(batch, *(1,) * (x.ndim - 2), size)
