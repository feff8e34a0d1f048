"""ULSAM: an attention map over all pixels for each group of channels.

"ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional
Neural Networks" (arXiv 2006.15102), as its released module has it; the paper
counts neither biases nor norms.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, lina_layers, normalization, taps

# The released module's, of which PyTorch's momentum, 0.9, is the share of the
# new statistics.
BATCH_NORM_MOMENTUM = 0.1
BATCH_NORM_EPSILON = 1e-5


class SubspaceGate(nn.Module):
  """x + map * x, with a map that sums to 1 over the pixels for each group.

  Groups are runs of neighbouring channels. As a map's values are about one by
  the number of pixels, it changes little at the start.

  Attributes:
    groups: how many there are; they divide the channels.
    use_bias: whether both products have biases, as in the released module.
    dtype: dtype of the computation; the map is float32.
    param_dtype: dtype of the parameters.
  """

  groups: int = 4
  use_bias: bool = True
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps [batch, height, width, channels] to an array like it.

    Raises:
      ValueError: if the groups do not divide the channels.
    """
    channels = x.shape[-1]
    if self.groups < 1 or channels % self.groups:
      fits = [n for n in range(1, channels + 1) if channels % n == 0]
      raise ValueError(
        f"groups is {self.groups}, which does not divide {channels} channels; "
        f"of these {fits} fit"
      )
    size = channels // self.groups
    x = x.astype(self.dtype)
    # A factor for each channel: a filter of one pixel, with one input.
    y = self._weighted("depthwise", x, (channels,), inputs=1)
    y = nn.relu(self._norm("depthwise_norm", train, self.dtype)(y))
    y = layers.max_pool(y, stride=1)
    y = y.reshape(*y.shape[:3], self.groups, size)
    scores = self._weighted("point", y, (self.groups, size), inputs=size)
    scores = nn.relu(self._norm("point_norm", train, jnp.float32)(scores))
    weights = jax.nn.softmax(scores, axis=(1, 2))  # [B, H, W, groups]
    weights = taps.tap(self, "attention_weights", weights)
    factor = jnp.repeat(1 + weights, size, axis=-1)
    return (x.astype(jnp.float32) * factor).astype(self.dtype)

  def _weighted(self, name, x, shape, *, inputs) -> jax.Array:
    return Weighted(
      shape, inputs, self.use_bias, self.dtype, self.param_dtype, name=name
    )(x)

  def _norm(self, name: str, train: bool, dtype: layers.Dtype) -> nn.Module:
    return normalization.BatchNorm(
      use_running_average=not train,
      momentum=BATCH_NORM_MOMENTUM,
      epsilon=BATCH_NORM_EPSILON,
      dtype=dtype,
      param_dtype=self.param_dtype,
      name=name,
    )


class Weighted(nn.Module):
  """x * kernel + bias, summed over the last axis of two.

  Attributes:
    shape: of the kernel.
    inputs: how many are summed; PyTorch's initial values follow from it.
    use_bias: whether there is a bias.
    dtype: dtype of the products; sums are float32.
    param_dtype: dtype of the parameters.
  """

  shape: tuple[int, ...]
  inputs: int
  use_bias: bool
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, *shape] to that, or without its last axis."""
    init = lina_layers.uniform(self.inputs)
    kernel = self.param("kernel", init, self.shape, self.param_dtype)
    y = x * kernel.astype(self.dtype)[None, None, None]
    if len(self.shape) > 1:
      y = y.sum(-1, dtype=jnp.float32)
    if not self.use_bias:
      return y
    bias = self.param("bias", init, self.shape[:1], self.param_dtype)
    return y + bias.astype(y.dtype)[None, None, None]
