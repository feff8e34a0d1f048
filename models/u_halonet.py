"""U-HaloNet: halo attention in the layout of a vision transformer.

STM-Evaluation, "Demystify Transformers & Convolutions in Modern Image Deep
Networks" (arXiv 2211.05781), puts the spatial mixers of several papers into one
backbone. This is its code's `unified_halo_{micro,tiny,small,base}`: patches of
overlapping convolutions, layer norm before attention and before a feed-forward
layer of 4 times the width, layer scale, a layer norm after each stage, and a
wide 1 x 1 convolution before the mean. Its keys are masked beyond the edge.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from models import layers, normalization, taps, token_mixers
from models.backbone import Backbone

Dtype = layers.Dtype

# Of the convolutions and stages; PyTorch's default within blocks.
LayerNorm = functools.partial(normalization.LayerNorm, epsilon=1e-6)
BlockNorm = functools.partial(normalization.LayerNorm, epsilon=1e-5)
BATCH_NORM_EPSILON = 1e-5
KERNEL_INIT = nn.initializers.truncated_normal(0.02)
LAYER_SCALE = 1e-6
gelu = functools.partial(nn.gelu, approximate=False)


class UHaloNet(Backbone):
  """U-HaloNet, from an image of any size to logits or a feature pyramid.

  Where blocks do not tile a feature map the zeros around it are keys as well;
  its code takes no such sizes.

  Attributes:
    widths: channels of each stage, each of half the height and width of the
      one before.
    depths: number of blocks of each stage.
    mixer: a name of `token_mixers.TOKEN_MIXERS`.
    head_dim: channels of a head.
    block_size: side of the blocks of queries, in tokens.
    halo_size: tokens that keys reach beyond a block, on each side.
    mask_padding: whether keys beyond the edge are left out of the softmax.
    expansion: width of a feed-forward layer over that of its stage.
    final_ratio: width of the last convolution over that of the last stage.
    batch_norm_momentum: share of the old value in an update of the running
      statistics, of which only the last convolution has any.
    stochastic_depth_rate: probability that the residual branches of the last
      block are dropped; it grows linearly from 0 in the first.
    num_classes: number of logits; if 0, `model.apply` gives the mean of the
      last convolution.
    attention_implementation: which implementation of the attention runs, see
      `attention.kernels.dispatch`.
  """

  widths: tuple[int, ...] = (96, 192, 384, 768)
  depths: tuple[int, ...] = (2, 2, 6, 2)
  mixer: str = "halo_attention"
  head_dim: int = 32
  block_size: int = 7
  halo_size: int = 3
  mask_padding: bool = True
  expansion: int = 4
  final_ratio: float = 1.5
  batch_norm_momentum: float = 0.9
  attention_implementation: str = "auto"

  def setup(self):
    if len(self.depths) != len(self.widths):
      raise ValueError(
        f"depths is {self.depths}; widths {self.widths} need one depth each"
      )
    dtypes = self.dtypes
    self.stem = Stem(self.widths[0], **dtypes)
    self.stage = self._stages(dtypes)
    self.final_conv = layers.ConvNorm(
      int(self.final_ratio * self.widths[-1]),
      batch_norm=functools.partial(
        normalization.BatchNorm,
        momentum=self.batch_norm_momentum,
        epsilon=BATCH_NORM_EPSILON,
        **dtypes,
      ),
      activation=gelu,
      kernel_init=KERNEL_INIT,
      **dtypes,
    )
    self.head = layers.Head(
      self.num_classes, dropout_rate=0.0, kernel_init=KERNEL_INIT, **dtypes
    )

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    return self.head(self.final_conv(maps[-1], train), train)

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns the feature maps of stem and stages: strides 2, 4, 8, ...

    Sizes that the stride does not divide are rounded up.
    """
    layers.check_images(x)
    half, x = self.stem(x)
    maps = [half]
    for stage in self.stage:
      x = stage(x, train)
      maps.append(x)
    return maps

  @property
  def size_multiple(self) -> int:
    """A side of images that blocks need not round up, and its multiples."""
    return 2 ** (len(self.widths) + 1)

  def _stages(self, dtypes: dict[str, Dtype]) -> list[layers.Stage]:
    offered = {
      "head_dim": self.head_dim,
      "block_size": self.block_size,
      "halo_size": self.halo_size,
      "mask_padding": self.mask_padding,
      "out_projection": True,
      "implementation": self.attention_implementation,
      "kernel_init": KERNEL_INIT,
      **dtypes,
    }
    rates_of_stages = layers.linear_rates(
      self.stochastic_depth_rate, self.depths
    )
    stages = []
    for width, rates in zip(self.widths, rates_of_stages, strict=True):
      block = functools.partial(
        nn.remat(Block, static_argnums=(2,)) if self.remat else Block,
        width=width,
        mixer=functools.partial(token_mixers.create, self.mixer, offered),
        expansion=self.expansion,
        **dtypes,
      )
      # The layer norm at the end of a stage is in its last block, a layer to
      # those who count.
      fields = [{"ends": False}] * (len(rates) - 1) + [{"ends": True}]
      stages.append(
        layers.Stage(block, 2 if stages else 1, rates, tuple(fields))
      )
    return stages


class Stem(nn.Module):
  """Patches of 4 pixels that overlap: two 3 x 3 convolutions of stride 2."""

  width: int
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the maps of stride 2 and 4."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    half = _halve(self.width // 2, name="conv_0", **dtypes)(x)
    half = gelu(LayerNorm(name="norm_0", **dtypes)(half))
    x = _halve(self.width, name="conv_1", **dtypes)(half)
    x = LayerNorm(name="norm_1", **dtypes)(x)
    return half, taps.tap(self, "hidden_state", x)


class Block(nn.Module):
  """A token mixer and a feed-forward layer, normalised, scaled and residual."""

  width: int
  stride: int
  ends: bool
  mixer: functools.partial
  expansion: int
  stochastic_depth_rate: float
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    dense = functools.partial(layers.Dense, kernel_init=KERNEL_INIT, **dtypes)
    if self.stride == 2:
      x = _halve(self.width, use_bias=False, name="conv", **dtypes)(x)
      x = LayerNorm(name="norm", **dtypes)(x)
    y = BlockNorm(name="attention_norm", **dtypes)(x)
    y = self.mixer(name="attention")(y)
    x = self._add(x, y, "attention", train)
    y = BlockNorm(name="ffn_norm", **dtypes)(x)
    y = gelu(dense(self.expansion * self.width, name="expand")(y))
    y = dense(self.width, name="shrink")(y)
    x = self._add(x, y, "ffn", train)
    if self.ends:
      x = LayerNorm(name="out_norm", **dtypes)(x)
    return taps.tap(self, "hidden_state", x)

  def _add(self, x: jax.Array, y: jax.Array, name: str, train: bool):
    """Adds a branch, each channel scaled by a number that is learned."""
    scale = self.param(
      f"{name}_layer_scale",
      nn.initializers.constant(LAYER_SCALE),
      (self.width,),
      self.param_dtype,
    )
    y *= scale.astype(y.dtype)[None, None, None]
    return x + layers.StochasticDepth(self.stochastic_depth_rate)(y, train)


def _halve(width: int, **options: Any) -> nn.Conv:
  """A 3 x 3 convolution of stride 2, a border of one pixel."""
  return layers.Conv(
    width,
    (3, 3),
    strides=2,
    padding=1,
    kernel_init=KERNEL_INIT,
    **options,
  )


# Width of the first stage and blocks of the third.
_SIZES = {
  "micro": (32, 9),
  "tiny": (96, 6),
  "small": (96, 18),
  "base": (128, 18),
}

KIND = "image"
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  f"u_halonet_{size}": (
    UHaloNet,
    {
      "widths": tuple(width * 2**stage for stage in range(4)),
      "depths": (2, 2, third, 2),
    },
  )
  for size, (width, third) in _SIZES.items()
}
IMAGE_SIZES = dict.fromkeys(VARIANTS, 224)
