"""HAT's blocks: windows beside convolutions, and attention over their edges."""

import functools

import flax.linen as nn
import jax

import attention
from models import halo_mixer, layers, normalization, rows, taps
from models.feed_forward import FeedForward, exact_gelu
from models.head_projections import ToHeads, from_heads
from models.restoration_layers import conv, dense
from models.token_mixers import ShiftedAttention

Dtype = layers.Dtype

KERNEL_INIT = nn.initializers.normal(0.02)
LayerNorm = functools.partial(normalization.LayerNorm, epsilon=1e-5)


class HybridBlock(nn.Module):
  """Window attention and a convolution of the same, then a feed-forward layer.

  z + drop(attend(n)) + conv_scale convolve(n) with n = norm(z), and then
  z + drop(feed_forward(norm(z))); HAT's HAB.

  Attributes:
    heads: heads of the attention.
    window_size: side of a window.
    shift: by how much windows are shifted.
    mlp_width: channels within the feed-forward layer.
    conv_width: channels between the convolutions.
    gate_width: channels within the gate of channels.
    conv_scale: factor of the convolutional branch, which is never dropped.
    stochastic_depth_rate: probability of dropping each of the other branches.
    implementation: which implementation of the attention runs.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  heads: int
  window_size: int
  shift: int
  mlp_width: int
  conv_width: int
  gate_width: int
  conv_scale: float
  stochastic_depth_rate: float
  implementation: str
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    drop = functools.partial(layers.StochasticDepth, self.stochastic_depth_rate)
    y = LayerNorm(name="attention_norm", **dtypes)(x)
    convolved = ChannelGatedConv(
      self.conv_width, self.gate_width, name="conv", **dtypes
    )(y)
    attended = ShiftedAttention(
      head_dim=x.shape[-1] // self.heads,
      window_size=self.window_size,
      shift=self.shift,
      implementation=self.implementation,
      kernel_init=KERNEL_INIT,
      name="attention",
      **dtypes,
    )(y)
    x += drop()(rows.by_rows(attended), train) + self.conv_scale * convolved
    y = LayerNorm(name="ffn_norm", **dtypes)(x)
    y = _feed_forward(self.mlp_width, dtypes)(y)
    x += drop()(rows.by_rows(y), train)
    return taps.tap(self, "hidden_state", x)


class ChannelGatedConv(nn.Module):
  """Two 3 x 3 convolutions, and a gate of each channel by its mean (RCAN)."""

  width: int
  gate_width: int
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    channels = x.shape[-1]
    y = conv(self.width, channels, name="conv_0", **dtypes)(x)
    y = conv(channels, self.width, name="conv_1", **dtypes)(exact_gelu(y))
    gate = y.mean((1, 2), keepdims=True)
    gate = dense(self.gate_width, channels, name="reduce", **dtypes)(gate)
    gate = dense(channels, self.gate_width, name="expand", **dtypes)(
      nn.relu(gate)
    )
    return y * nn.sigmoid(gate)


class OverlappingBlock(nn.Module):
  """Windows of queries that see beyond themselves, then a feed-forward layer.

  HAT's OCAB: halo attention whose keys beyond the edge of the image are zeros
  that take their share, with the bias that belongs to them.

  Attributes:
    heads: heads of the attention.
    window_size: side of a window of queries.
    halo_size: how far keys lie beyond it, on each side.
    mlp_width: channels within the feed-forward layer.
    implementation: which implementation of the attention runs.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  heads: int
  window_size: int
  halo_size: int
  mlp_width: int
  implementation: str
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    options = {"kernel_init": KERNEL_INIT, **dtypes}
    channels = x.shape[-1]
    y = LayerNorm(name="attention_norm", **dtypes)(x)
    qkv = ToHeads(3, self.heads, channels // self.heads, name="qkv", **options)
    y = self._attend(*qkv(y))
    y = nn.DenseGeneral(
      channels, axis=(-2, -1), dot_general=from_heads, name="out", **options
    )(y)
    x += rows.by_rows(y)
    y = LayerNorm(name="ffn_norm", **dtypes)(x)
    x += rows.by_rows(_feed_forward(self.mlp_width, dtypes)(y))
    return taps.tap(self, "hidden_state", x)

  def _attend(self, q, k, v) -> jax.Array:
    """Maps queries, keys and values [B, H, W, heads, d] to the same."""
    side = 2 * (self.window_size + self.halo_size) - 1
    table = self.param(
      "relative_bias_table",
      KERNEL_INIT,
      (self.heads, side, side),
      self.param_dtype,
    )
    bias = attention.relative_halo_bias(table, self.window_size)
    return halo_mixer.attend(
      self,
      q,
      k,
      v,
      block_size=self.window_size,
      halo_size=self.halo_size,
      bias=bias,
    )


def _feed_forward(width: int, dtypes) -> FeedForward:
  return FeedForward(
    "gelu", width, True, KERNEL_INIT, KERNEL_INIT, name="ffn", **dtypes
  )
