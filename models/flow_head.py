"""The head that turns noise into a token: an MLP that gives a velocity."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, lina_layers, normalization

_ZEROS = {
  "kernel_init": nn.initializers.zeros,
  "bias_init": nn.initializers.zeros,
}


class FlowHead(nn.Module):
  """Velocity of a noisy token, given the time and what the token shall be of.

  Of MAR (arXiv 2406.11838): each token is one example to it, wherever it is.
  At the start the velocity is exactly zero.

  Attributes:
    width: channels of the hidden state.
    depth: number of blocks.
    dtype: dtype of the computation; the velocity is float32.
    param_dtype: dtype of the parameters.
  """

  width: int
  depth: int
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_t: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
    """Returns the velocity, noise minus token, as the head sees it.

    Args:
      x_t: noisy tokens [..., token_dim].
      t: times [...], from 0 (no noise) to 1000 (noise alone).
      z: what the transformer says of the tokens [..., width].

    Leading axes of `t` and `z` may be of size one where those of `x_t` are not.
    What is made of them alone is then computed once, not for each.

    Returns:
      [..., token_dim], float32.
    """
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = lina_layers.dense(
      self.width,
      x_t.shape[-1],
      bias_init=nn.initializers.zeros,
      name="patch_embed",
      **dtypes,
    )(x_t)
    mlp = lambda name, **options: lina_layers.Mlp(
      self.width, self.width, name=name, **options, **dtypes
    )
    time = mlp("time", kernel_init=nn.initializers.normal(0.02))
    condition = mlp("condition")(z) + time(time_features(t, self.dtype))
    condition = nn.silu(condition)
    for i in range(self.depth):
      x = FlowBlock(name=f"block_{i}", **dtypes)(x, condition)
    x, _ = _modulated(x, condition, 2, dtypes)
    # In float32, since a sampler adds up many of them.
    return lina_layers.dense(
      x_t.shape[-1],
      self.width,
      dtype=jnp.float32,
      param_dtype=self.param_dtype,
      name="out",
      **_ZEROS,
    )(x.astype(jnp.float32))


class FlowBlock(nn.Module):
  """x + g LN(MLP(LN(x) (1 + s) + b)), with s, b, g of the condition.

  Attributes:
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
    """Maps [..., width], given SiLU(c) [..., width], to an array like `x`."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    width = x.shape[-1]
    y, (gate,) = _modulated(x, condition, 3, dtypes)
    y = lina_layers.Mlp(width, width, name="mlp", **dtypes)(y)
    norm = normalization.LayerNorm(epsilon=1e-5, name="norm", **dtypes)
    return x + gate * norm(y)


def time_features(t: jax.Array, dtype: layers.Dtype) -> jax.Array:
  """Maps times [...] to cosines, then sines, [..., 256].

  They are of t 10000^(-i / 128), i < 128.
  """
  half = lina_layers.TIME_CHANNELS // 2
  frequencies = jnp.exp(jnp.arange(half) * (-math.log(10000.0) / half))
  frequencies = frequencies.reshape((1,) * t.ndim + (-1,))
  angles = t.astype(jnp.float32)[..., None] * frequencies
  parts = [jnp.cos(angles), jnp.sin(angles)]
  return jnp.concatenate(parts, axis=-1).astype(dtype)


def _modulated(x, condition, count, dtypes):
  """Adaptive layer norm; returns what is left of its `count` statistics too."""
  width = x.shape[-1]
  statistics = lina_layers.dense(
    count * width, width, name="modulation", **_ZEROS, **dtypes
  )(condition)
  scale, shift, *rest = jnp.split(statistics, count, axis=-1)
  norm = normalization.LayerNorm(
    epsilon=1e-6, use_scale=False, use_bias=False, name="plain_norm", **dtypes
  )
  return norm(x) * (1 + scale) + shift, rest
