"""HaloNet's stem and residual blocks: convolutions or attention within."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import halo_mixer, layers, rows, taps

Dtype = layers.Dtype


class Stem(nn.Module):
  """One or three convolutions and max pooling."""

  kind: str
  width: int
  pool: bool
  conv: functools.partial

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the last map of stride 2, and what the stages start from."""
    kernel_size, widths = (7 if self.kind == "conv7" else 3), (self.width,)
    if self.kind == "tiered":
      widths = (3 * self.width // 8, self.width // 2, self.width)
    for i, width in enumerate(widths):
      half = x
      strided = i == 0 or (i == len(widths) - 1 and not self.pool)
      x = self.conv(
        width,
        kernel_size=kernel_size,
        stride=2 if strided else 1,
        name=f"conv_{i}",
      )(x, train)
    if self.pool or self.kind != "tiered":
      half = x
    x = layers.max_pool(x) if self.pool else x
    return half, taps.tap(self, "hidden_state", x)


class Block(nn.Module):
  """1 x 1 convolution, 3 x 3 convolution or attention, 1 x 1 convolution."""

  kind: str
  width: int
  bottleneck_width: int | None
  expansion: int
  stride: int
  mixer: functools.partial
  norm_after_attention: bool
  shortcut: str
  group_width: int
  channel_attention: str
  squeeze_ratio: float
  linear_output: bool
  activation: Callable[[jax.Array], jax.Array]
  stochastic_depth_rate: float
  conv: functools.partial
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    shortcut = self._shortcut(x, train)
    hidden = self.bottleneck_width or self.expansion * x.shape[-1]
    y = self.conv(hidden, name="conv_in")(x, train)
    if self.kind == "conv":
      y = self._convolution(y, train)
    else:
      y = self.mixer(self.kind, hidden, self.stride, name="attention")(y)
      if self.norm_after_attention:
        norm = self.conv.keywords["batch_norm"]
        norm = norm(use_running_average=not train, name="attention_norm")
        y = self.activation(norm(y))
    y = self.conv(
      self.width,
      activation=lambda x: x,
      # A block without shortcut must pass something on.
      scale_init=nn.initializers.ones
      if shortcut is None
      else nn.initializers.zeros,
      name="conv_out",
    )(y, train)
    y = rows.by_rows(y)
    y = layers.StochasticDepth(self.stochastic_depth_rate)(y, train)
    if shortcut is not None:
      y += shortcut
    y = y if self.linear_output else self.activation(y)
    return taps.tap(self, "hidden_state", y)

  def _convolution(self, x: jax.Array, train: bool) -> jax.Array:
    channels = x.shape[-1]
    x = self.conv(
      channels,
      kernel_size=3,
      stride=self.stride,
      groups=channels // self.group_width if self.group_width else 1,
      name="conv_mid",
    )(x, train)
    if self.channel_attention == "se":
      return layers.SqueezeExcite(
        _divisible(self.squeeze_ratio * channels),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name="se",
      )(x)
    if self.channel_attention == "eca":
      return EfficientChannelAttention(self.param_dtype, name="eca")(x)
    return x

  def _shortcut(self, x: jax.Array, train: bool) -> jax.Array | None:
    if self.stride == 1 and x.shape[-1] == self.width:
      return x
    if self.shortcut == "none":
      return None
    stride = self.stride
    if self.shortcut == "average_pool" and stride == 2:
      x, stride = layers.average_pool(x), 1
    return self.conv(
      self.width, stride=stride, activation=lambda x: x, name="shortcut"
    )(x, train)


class EfficientChannelAttention(nn.Module):
  """Scales each channel by what its neighbours' means say (1910.03151)."""

  param_dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    del train
    channels = x.shape[-1]
    # An odd number of neighbours that grows with the logarithm of the width.
    size = int((math.log2(channels) + 1) / 2)
    size = max(size + 1 - size % 2, 3)
    kernel = self.param(
      "kernel", nn.initializers.lecun_normal(), (size, 1), self.param_dtype
    )
    mean = jnp.pad(x.mean((1, 2)), ((0, 0), (size // 2, size // 2)))
    gate = sum(
      mean[:, i : i + channels] * kernel[i, 0].astype(x.dtype)
      for i in range(size)
    )
    return x * nn.sigmoid(gate)[:, None, None]


def create_mixer(
  kind: str,
  width: int,
  stride: int,
  *,
  heads: int,
  halo: dict[str, Any],
  side: int,
  key_ratio: float,
  key_dim: int | None,
  value_ratio: float,
  name: str,
  **options: Any,
) -> nn.Module:
  """Makes the attention of a block of this width."""
  if kind == "global":
    return halo_mixer.GlobalAttention(
      side * stride, stride=stride, name=name, **options
    )
  return halo_mixer.HaloAttention(
    heads,
    key_dim=key_dim or _divisible(key_ratio * width) // heads,
    value_dim=round(value_ratio * width) // heads,
    stride=stride,
    name=name,
    **halo,
    **options,
  )


def _divisible(width: float) -> int:
  """The nearest multiple of 8, as timm rounds widths."""
  return max(8, int(width + 4) // 8 * 8)
