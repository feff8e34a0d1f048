"""Encoder and decoder of latent diffusion's autoencoder (arXiv 2112.10752)."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, open_attention


class ResidualBlock(nn.Module):
  """x + conv(silu(norm(conv(silu(norm(x)))))), 3 x 3.

  Attributes:
    width: channels of the result; where x has others, a dense layer maps it.
    norm: makes a group norm, given a name.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  width: int
  norm: functools.partial
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    y = x
    for i in range(2):
      y = nn.silu(self.norm(name=f"norm_{i}")(y))
      y = convolution(self.width, name=f"conv_{i}", **dtypes)(y)
    if x.shape[-1] != self.width:
      x = layers.Dense(self.width, name="shortcut", **dtypes)(x)
    return x + y


class SpatialAttention(nn.Module):
  """x + attention(norm(x)) of one head, over all places of the image.

  Attributes:
    norm: makes a group norm, given a name.
    implementation: which one runs; see `attention.kernels.dispatch`.
    dtype: dtype of the computation; scores and softmax are float32.
    param_dtype: dtype of the parameters.
  """

  norm: functools.partial
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    batch, height, width, channels = x.shape
    y = self.norm(name="norm")(x)
    # [batch, places, 1, channels]
    y = y.reshape(batch, height * width, 1, channels)
    q, k, v = (
      layers.Dense(channels, name=name, **dtypes)(y)
      for name in ("query", "key", "value")
    )
    y = open_attention.dot_product(
      self, q, k, v, implementation=self.implementation
    )
    y = layers.Dense(channels, name="out", **dtypes)(y)
    return x + y.reshape(x.shape)


class Level(nn.Module):
  """Residual blocks of one resolution.

  Attributes:
    block: makes a residual block, given a name.
    depth: how many there are.
    attention: makes an attention, given a name, that follows each block; none
      if None.
  """

  block: functools.partial
  depth: int
  attention: functools.partial | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.depth):
      x = self.block(name=f"block_{i}")(x)
      if self.attention is not None:
        x = self.attention(name=f"attention_{i}")(x)
    return x


class _Half(nn.Module):
  """What encoder and decoder have in common.

  Attributes:
    widths: channels of each level; from one to the next images are halved.
    depth: residual blocks of each level.
    attention_levels: levels, from 0, with attention.
    channels: channels of the result.
    block: makes a residual block, given a width and a name.
    attention: makes an attention, given a name.
    norm: makes a group norm, given a name.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  widths: Sequence[int]
  depth: int
  attention_levels: Sequence[int]
  channels: int
  block: functools.partial
  attention: functools.partial
  norm: functools.partial
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32


class Encoder(_Half):
  """From images to what moments are made of."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, any] to [batch, h, w, channels]."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = convolution(self.widths[0], name="conv_in", **dtypes)(x)
    for i, width in enumerate(self.widths):
      x = _level(self, i, self.depth)(x)
      if i < len(self.widths) - 1:
        # The border is after the image only.
        x = convolution(
          width,
          strides=2,
          padding=((0, 1), (0, 1)),
          name=f"downsample_{i}",
          **dtypes,
        )(x)
    x = _middle(self, x)
    x = nn.silu(self.norm(name="norm_out")(x))
    return convolution(self.channels, name="conv_out", **dtypes)(x)


class Decoder(_Half):
  """From latents to images; levels have the encoder's numbers."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, h, w, any] to [batch, height, width, channels]."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = convolution(self.widths[-1], name="conv_in", **dtypes)(x)
    x = _middle(self, x)
    for i in reversed(range(len(self.widths))):
      x = _level(self, i, self.depth)(x)
      if i:
        x = upsample_nearest(x)
        x = convolution(self.widths[i], name=f"upsample_{i}", **dtypes)(x)
    x = nn.silu(self.norm(name="norm_out")(x))
    return convolution(self.channels, name="conv_out", **dtypes)(x)


def convolution(width: int, **options) -> nn.Module:
  """Returns a convolution of 3 x 3 pixels, with a border of one by default."""
  return layers.Conv(width, (3, 3), **{"padding": 1, **options})


def upsample_nearest(x: jax.Array) -> jax.Array:
  """Makes each pixel of [batch, height, width, channels] 2 x 2 like it."""
  batch, height, width, channels = x.shape
  x = jnp.broadcast_to(
    x[:, :, None, :, None], (batch, height, 2, width, 2, channels)
  )
  return x.reshape(batch, 2 * height, 2 * width, channels)


def _level(owner: _Half, i: int, depth: int) -> Level:
  return Level(
    functools.partial(owner.block, owner.widths[i]),
    depth,
    owner.attention if i in owner.attention_levels else None,
    name=f"level_{i}",
  )


def _middle(owner: _Half, x: jax.Array) -> jax.Array:
  """Two blocks about an attention, at the lowest resolution."""
  width = owner.widths[-1]
  x = owner.block(width, name="middle_block_0")(x)
  x = owner.attention(name="middle_attention")(x)
  return owner.block(width, name="middle_block_1")(x)
