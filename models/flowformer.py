"""Flowformer's vision model: four stages of flow attention.

"Flowformer: Linearizing Transformers with Conservation Flows" (arXiv
2202.06258), as its released script builds it: attention in linear time over all
tokens of a map, at strides 4, 8, 16 and 32. What is scaled at the start of
training is the feed-forward branch alone.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from models import (
  feed_forward,
  layers,
  lina_layers,
  normalization,
  open_attention,
  registry,
  taps,
)
from models.backbone import Backbone

Dtype = layers.Dtype

PATCH = 4
# PyTorch's truncated normal is cut at 2, so many deviations away that nothing
# is cut.
KERNEL_INIT = nn.initializers.normal(0.02)
LayerNorm = functools.partial(normalization.LayerNorm, epsilon=1e-6)
ATTENTIONS = ("flow", "softmax")


class Flowformer(Backbone):
  """Flowformer, from an image to logits or to a pyramid of feature maps.

  Attributes:
    widths: channels of each stage.
    depths: blocks of each stage.
    heads: attention heads, of every stage.
    expansion: hidden width over width, in feed-forward layers.
    attention: "flow", or "softmax", what the paper compares it with.
    clip: bound of what goes out of a source before the competition; 0 for none.
    outer_epsilon: what is added to each product of flows as a whole; see
      `attention.flow_attention`.
    layer_scale: what the feed-forward branches are multiplied by at the start;
      attention has no such factor.
    image_size: side of the images that the stored positions are for; for others
      they are interpolated at run time.
    stochastic_depth_rate: probability of dropping the residual branches of the
      last block; it grows linearly from 0.
    num_classes: number of logits; if 0, `model.apply` gives the mean of the
      normalised tokens.
    attention_implementation: which implementation of the attention runs, see
      `attention.kernels.dispatch`.
  """

  widths: tuple[int, ...] = (96, 192, 384, 768)
  depths: tuple[int, ...] = (3, 3, 10, 3)
  heads: int = 12
  expansion: int = 4
  attention: str = "flow"
  clip: float = 1.0
  outer_epsilon: float = 1e-6
  layer_scale: float = 1e-5
  image_size: int = 224
  attention_implementation: str = "auto"

  def setup(self):
    self._check_fields()
    self.stem = Stem(self.widths[0], self.image_size // PATCH, **self.dtypes)
    block = functools.partial(
      nn.remat(Block, static_argnums=(2,)) if self.remat else Block,
      heads=self.heads,
      expansion=self.expansion,
      attention=self.attention,
      clip=self.clip,
      outer_epsilon=self.outer_epsilon,
      layer_scale=self.layer_scale,
      implementation=self.attention_implementation,
      **self.dtypes,
    )
    rates = layers.linear_rates(self.stochastic_depth_rate, self.depths)
    self.stage = [
      layers.Stage(
        functools.partial(block, width=width), 2 if i else 1, rates[i]
      )
      for i, width in enumerate(self.widths)
    ]
    self.head = Head(self.num_classes, **self.dtypes)

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns the feature maps of stem and stages: strides 4, 4, 8, 16, 32."""
    self._check_images(x)
    maps = [self.stem(x)]
    for stage in self.stage:
      maps.append(stage(maps[-1], train))
    return maps

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    del train
    return self.head(maps[-1])

  @property
  def size_multiple(self) -> int:
    """The number of which height and width of images must be multiples."""
    return PATCH * 2 ** (len(self.widths) - 1)

  def _check_fields(self) -> None:
    if self.attention not in ATTENTIONS:
      raise registry.unknown("attention", self.attention, ATTENTIONS)
    if len(self.depths) != len(self.widths):
      raise ValueError(
        f"depths is {self.depths}; widths {self.widths} need one depth each"
      )
    for width in self.widths:
      if self.heads < 1 or width % self.heads:
        raise ValueError(
          f"heads is {self.heads}, which does not divide width {width} of "
          f"widths {self.widths}"
        )
    if self.image_size < 1 or self.image_size % self.size_multiple:
      raise ValueError(
        f"image_size is {self.image_size}; it must be a multiple of "
        f"{self.size_multiple}"
      )

  def _check_images(self, x: jax.Array) -> None:
    layers.check_images(x)
    height, width = x.shape[1:3]
    step = self.size_multiple
    if height % step or width % step:
      raise ValueError(
        f"x is {height} x {width}; with {len(self.widths)} stages height and "
        f"width must be multiples of {step}, as {self.image_size}"
      )


class Stem(nn.Module):
  """Patches of 4 x 4 pixels, and where they are."""

  width: int
  side: int
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / 4, W / 4, D]."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = _patches(x, self.width, PATCH, "conv", **dtypes)
    shape = (self.side, self.side, self.width)
    position = self.param("position", KERNEL_INIT, shape, self.param_dtype)
    if x.shape[1:3] != shape[:2]:
      shape = (*x.shape[1:3], self.width)
      position = jax.image.resize(position, shape, "bicubic")
    return taps.tap(self, "hidden_state", x + position[None].astype(x.dtype))


class Block(nn.Module):
  """Attention and feed-forward layer, each normalised before and residual.

  One that strides joins 2 x 2 tokens before.
  """

  width: int
  heads: int
  expansion: int
  attention: str
  clip: float
  outer_epsilon: float
  layer_scale: float
  implementation: str
  dtype: Dtype
  param_dtype: Dtype
  stride: int = 1
  stochastic_depth_rate: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / stride, W / stride, width]."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    dense = functools.partial(layers.Dense, kernel_init=KERNEL_INIT, **dtypes)
    drop = functools.partial(layers.StochasticDepth, self.stochastic_depth_rate)
    if self.stride > 1:
      x = _patches(x, self.width, self.stride, "merge", **dtypes)
    y = LayerNorm(name="attention_norm", **dtypes)(x)
    y = SelfAttention(
      self.heads,
      self.attention,
      self.clip,
      self.outer_epsilon,
      self.implementation,
      name="attention",
      **dtypes,
    )(y)
    x += drop()(y, train)
    y = LayerNorm(name="ffn_norm", **dtypes)(x)
    y = dense(self.expansion * self.width, name="expand")(y)
    y = dense(self.width, name="shrink")(feed_forward.exact_gelu(y))
    scale = self.param(
      "ffn_layer_scale",
      nn.initializers.constant(self.layer_scale),
      (self.width,),
      self.param_dtype,
    )
    y *= scale[None, None, None].astype(y.dtype)
    return taps.tap(self, "hidden_state", x + drop()(y, train))


class SelfAttention(nn.Module):
  """Attention among all tokens of a map."""

  heads: int
  attention: str
  clip: float
  outer_epsilon: float
  implementation: str
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to an array like it."""
    batch, height, rows, width = x.shape
    dense = functools.partial(
      layers.DenseGeneral,
      kernel_init=KERNEL_INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    qkv = dense((3, self.heads, width // self.heads), name="qkv")(
      x.reshape(batch, height * rows, width)
    )
    # Three times [B, tokens, heads, C / heads].
    q, k, v = (qkv[..., i, :, :] for i in range(3))
    out = (
      self._flow(q, k, v) if self.attention == "flow" else self._dot(q, k, v)
    )
    return dense(width, axis=(-2, -1), name="out")(out).reshape(x.shape)

  def _flow(self, q, k, v) -> jax.Array:
    attend = functools.partial(
      attention.flow_attention,
      clip=self.clip or None,
      outer_epsilon=self.outer_epsilon,
    )
    return open_attention.linear(
      self, attend, q, k, v, implementation=self.implementation
    )

  def _dot(self, q, k, v) -> jax.Array:
    return open_attention.dot_product(
      self, q, k, v, implementation=self.implementation
    )


class Head(nn.Module):
  """Normalisation, the mean over tokens, logits."""

  num_classes: int
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = LayerNorm(name="norm", **dtypes)(x).mean((1, 2))
    if self.num_classes:
      x = layers.Dense(
        self.num_classes, kernel_init=KERNEL_INIT, name="logits", **dtypes
      )(x)
    return x.astype(jnp.float32)


def _patches(x, width: int, side: int, name: str, **dtypes) -> jax.Array:
  """Maps [B, H, W, C] to [B, H / side, W / side, width], as PyTorch begins."""
  fan_in = side**2 * x.shape[-1]
  return layers.Conv(
    width,
    (side, side),
    strides=(side, side),
    padding="VALID",
    kernel_init=lina_layers.uniform(fan_in),
    bias_init=lina_layers.uniform(fan_in),
    name=name,
    **dtypes,
  )(x)


KIND = "image"
# Heads, and hidden channels of feed-forward layers.
SHARDING_RULES = (
  ("attention/qkv/kernel", (None, None, "model", None)),
  ("attention/qkv/bias", (None, "model", None)),
  ("attention/out/kernel", ("model", None, None)),
  ("block_[0-9]+/expand/kernel", (None, "model")),
  ("block_[0-9]+/expand/bias", ("model",)),
  ("block_[0-9]+/shrink/kernel", ("model", None)),
)
# That of the released script. The widths that its class has by default, 64 to
# 512, are no multiples of its 12 heads.
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  "flowformer_224": (Flowformer, {}),
}
IMAGE_SIZES = dict.fromkeys(VARIANTS, 224)
