"""Efficient local attention: gates of the rows and of the columns of a map.

"ELA: Efficient Local Attention for Deep Convolutional Neural Networks" (arXiv
2403.01123). The sizes of its four variants, but for the large one, are those of
a public walkthrough of the paper, which agree with names in the authors' logs;
their code has the large one (`ELA72`), to which the tests hold this.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, lina_layers, registry, taps

# Size of the convolution, channels of its groups, groups of the norm.
VARIANTS = {
  "tiny": (5, 1, 32),
  "base": (7, 1, 16),
  "small": (5, 8, 16),
  "large": (7, 8, 16),
}
EPSILON = 1e-5


def strip_gates(
  x: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  *,
  norm_groups: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns what rows and columns are multiplied by, from 0 to 1.

  The means over columns, and over rows, are convolved, normalised by groups of
  channels, each by itself, and put through a sigmoid. Both have the same
  kernel, scale and bias.

  Args:
    x: [batch, height, width, channels].
    kernel: [size, channels / groups, channels], of a convolution without bias.
    scale: [channels], of the norm.
    bias: [channels], of the norm.
    norm_groups: groups of channels of the norm.

  Returns:
    float32 [batch, height, 1, channels] and [batch, 1, width, channels].

  Raises:
    ValueError: if channels are no multiple of the groups, or the size is even.
  """
  size, inputs, channels = kernel.shape
  if size % 2 == 0 or channels != x.shape[-1]:
    raise ValueError(
      f"kernel has shape {kernel.shape}; for x {x.shape} it must be [size, "
      f"channels / groups, {x.shape[-1]}] of an odd size"
    )
  _check_divisor("norm_groups", norm_groups, channels)
  _check_divisor("channels of a group", inputs, channels)
  gates = []
  for axis in (2, 1):
    strip = x.mean(axis, dtype=jnp.float32)  # [batch, length, channels]
    strip = _normalised(_convolved(strip, kernel), norm_groups)
    strip = strip * scale[None, None] + bias[None, None]
    gates.append(jnp.expand_dims(nn.sigmoid(strip), axis))
  return gates[0], gates[1]


def _check_divisor(name: str, value: int, channels: int) -> None:
  if value < 1 or channels % value:
    fits = [n for n in range(1, channels + 1) if channels % n == 0]
    raise ValueError(
      f"{name} is {value}, which does not divide {channels} channels; of these "
      f"{fits} fit"
    )


def _convolved(strip: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves [B, L, C] with zeros around it, in groups, in float32."""
  size, inputs, channels = kernel.shape
  kernel = kernel.astype(jnp.float32)
  length = strip.shape[1]
  border = (size // 2, size // 2)
  strip = jnp.pad(strip, ((0, 0), border, (0, 0)))
  shifted = [strip[:, i : i + length] for i in range(size)]
  if inputs == 1:
    # XLA's convolution of single channels is slow on the CPU.
    pairs = zip(shifted, kernel[:, 0], strict=True)
    return sum(x * weight[None, None] for x, weight in pairs)
  groups = channels // inputs
  x = jnp.stack(shifted, axis=2)  # [B, L, size, C]
  x = x.reshape(*x.shape[:3], groups, inputs)
  kernel = kernel.reshape(size, inputs, groups, -1)
  out = jnp.einsum("blsgi,sigo->blgo", x, kernel)
  return out.reshape(*out.shape[:2], channels)


def _normalised(strip: jax.Array, groups: int) -> jax.Array:
  """Gives the values of each example and group mean 0 and variance 1."""
  x = strip.reshape(*strip.shape[:2], groups, -1)
  x = x - x.mean((1, 3), keepdims=True)
  variance = jnp.square(x).mean((1, 3), keepdims=True)
  return (x * jax.lax.rsqrt(variance + EPSILON)).reshape(strip.shape)


class StripGate(nn.Module):
  """x * gates of rows * gates of columns; and x once more, if residual.

  At the start gates are about a half, so it is not the identity.

  Attributes:
    variant: a key of VARIANTS; its groups must divide the channels.
    residual: whether `x` is added, as in the authors' ResNet; their MobileNet
      goes without.
    dtype: dtype of the product; the gates are float32.
    param_dtype: dtype of the parameters.
  """

  variant: str = "base"
  residual: bool = False
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps [batch, height, width, channels] to an array like it.

    Raises:
      ValueError: if the variant does not fit.
    """
    del train
    if self.variant not in VARIANTS:
      raise registry.unknown("variant of ela", self.variant, VARIANTS)
    size, inputs, norm_groups = VARIANTS[self.variant]
    channels = x.shape[-1]
    for divisor in (inputs, norm_groups):
      if channels % divisor:
        raise ValueError(
          f"variant is {self.variant!r} with groups of {inputs} channels and a "
          f"norm of {norm_groups} groups, and x has {channels} channels; "
          f"variants that fit are {_fitting(channels)}"
        )
    kernel = self.param(
      "kernel",
      lina_layers.uniform(inputs * size),
      (size, inputs, channels),
      self.param_dtype,
    )
    scale, bias = (
      self.param(name, init, (channels,), self.param_dtype)
      for name, init in (
        ("scale", nn.initializers.ones),
        ("bias", nn.initializers.zeros),
      )
    )
    gates = strip_gates(x, kernel, scale, bias, norm_groups=norm_groups)
    rows, columns = (
      taps.tap(self, name, gate).astype(self.dtype)
      for name, gate in zip(("row_gate", "column_gate"), gates, strict=True)
    )
    x = x.astype(self.dtype)
    out = x * rows * columns
    return out + x if self.residual else out


def _fitting(channels: int) -> list[str]:
  return [
    name
    for name, (_, inputs, groups) in VARIANTS.items()
    if channels % inputs == channels % groups == 0
  ]
