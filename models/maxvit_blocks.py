"""MaxViT's blocks: inverted bottlenecks, token mixers, feed-forward layers."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import (
  feed_forward_branch,
  feed_forward_tpu,
  layers,
  normalization,
  rows,
  taps,
  token_mixers,
)

Dtype = layers.Dtype

KERNEL_INIT = nn.initializers.normal(0.02)
EPSILON = 1e-5
# The least for which the kernel of feed-forward layers was found faster.
_TOKENS_OF_A_CHANNEL = 4
LayerNorm = functools.partial(normalization.LayerNorm, epsilon=EPSILON)


def layer_names(layout: Sequence[str]) -> list[str]:
  """Names of a block's layers: what they are, and from the second on a number.

  Args:
    layout: kinds of layers in order.
  """
  seen, names = Counter(), []
  for kind in layout:
    names.append(f"{kind}_{seen[kind]}" if seen[kind] else kind)
    seen[kind] += 1
  return names


class Block(nn.Module):
  """The layers of `layout`, by default MBConv, block and grid attention."""

  width: int
  stride: int
  layout: tuple[str, ...]
  head_dim: int
  window_size: int
  bias_table_window: int | None
  bias_ranks: Mapping[str, int]
  scale_by: str
  attention_implementation: str
  feed_forward_implementation: str
  expansion: int
  squeeze_ratio: float
  batch_norm: functools.partial
  stochastic_depth_rate: float
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    stride = self.stride
    if "mbconv" not in self.layout:
      x = Shortcut(self.width, stride, name="shortcut", **dtypes)(x)
    for kind, name in zip(self.layout, layer_names(self.layout), strict=True):
      if kind == "mbconv":
        x = MBConv(
          self.width,
          stride,
          self.expansion,
          self.squeeze_ratio,
          self.batch_norm,
          self.stochastic_depth_rate,
          name=name,
          **dtypes,
        )(x, train)
        stride = 1
      else:
        x = self._transformer_layer(kind, name)(x, train)
    return taps.tap(self, "hidden_state", x)

  def _transformer_layer(self, kind: str, name: str) -> "TransformerLayer":
    offered = {
      "head_dim": self.head_dim,
      "window_size": self.window_size,
      "bias_table_window": self.bias_table_window,
      "bias_rank": self.bias_ranks.get("/".join((*self.path[-2:], name)), 0),
      "scale_by": self.scale_by,
      "implementation": self.attention_implementation,
      "kernel_init": KERNEL_INIT,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
    }
    return TransformerLayer(
      functools.partial(token_mixers.create, kind, offered),
      self.expansion,
      self.stochastic_depth_rate,
      self.feed_forward_implementation,
      self.dtype,
      self.param_dtype,
      name=name,
    )


class MBConv(nn.Module):
  """Inverted bottleneck with squeeze-excite, normalised before and within."""

  width: int
  stride: int
  expansion: int
  squeeze_ratio: float
  batch_norm: functools.partial
  stochastic_depth_rate: float
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    options = {"kernel_init": KERNEL_INIT, **dtypes}
    norm = functools.partial(self.batch_norm, use_running_average=not train)
    hidden = self.expansion * self.width
    # A 1 x 1 convolution is a dense layer, and faster as one.
    y = norm(name="pre_norm")(x)
    y = layers.Dense(hidden, use_bias=False, name="expand_conv", **options)(y)
    y = nn.gelu(norm(name="expand_norm")(y))
    y = layers.DepthwiseConv(
      stride=self.stride, name="depthwise_conv", **options
    )(y)
    y = nn.gelu(norm(name="depthwise_norm")(y))
    y = layers.SqueezeExcite(
      round(self.squeeze_ratio * self.width), nn.silu, name="se", **options
    )(y)
    y = layers.Dense(self.width, name="shrink_conv", **options)(y)
    y = layers.StochasticDepth(self.stochastic_depth_rate)(
      rows.by_rows(y), train
    )
    return Shortcut(self.width, self.stride, name="shortcut", **dtypes)(x) + y


class Shortcut(nn.Module):
  """The identity, but for the stride and for a change of width."""

  width: int
  stride: int
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.stride == 2:
      x = layers.average_pool(x)
    if x.shape[-1] == self.width:
      return x
    return layers.Dense(
      self.width,
      kernel_init=KERNEL_INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="conv",
    )(x)


class TransformerLayer(nn.Module):
  """A token mixer and a feed-forward layer, each normalised and residual."""

  token_mixer: functools.partial
  expansion: int
  stochastic_depth_rate: float
  feed_forward_implementation: str
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    drop = functools.partial(layers.StochasticDepth, self.stochastic_depth_rate)
    y = LayerNorm(name="attention_norm", **dtypes)(x)
    y = self.token_mixer(name="attention")(y)
    x += drop()(rows.by_rows(y), train)
    norm = LayerNorm(name="ffn_norm", **dtypes)
    ffn = FeedForward(self.expansion * x.shape[-1], name="ffn", **dtypes)
    run = None
    if not self.is_initializing():
      have = self.variables["params"]
      run = feed_forward_branch.kernel(
        x,
        feed_forward_branch.parameters(
          have["ffn_norm"], have["ffn"]["expand"], have["ffn"]["shrink"]
        ),
        feed_forward_tpu.Form(EPSILON),
        self.dtype,
        self.feed_forward_implementation,
        least=_TOKENS_OF_A_CHANNEL,
      )
    if run is None:
      return x + drop()(rows.by_rows(ffn(norm(x))), train)
    kept = jnp.ones((len(x),) + (1,) * (x.ndim - 1), x.dtype)
    return rows.by_rows(run(rows.by_rows(x), drop()(kept, train)))


class FeedForward(nn.Module):
  """Dense, GELU, dense."""

  hidden_width: int
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(
      layers.Dense,
      kernel_init=KERNEL_INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    y = nn.gelu(dense(self.hidden_width, name="expand")(x))
    return dense(x.shape[-1], name="shrink")(y)
