"""MaxViT: convolution, attention in windows and attention over a grid.

"MaxViT: Multi-Axis Vision Transformer" (arXiv 2204.01697). The tests
hold its logits and gradients equal to those of timm's maxvit_*_tf models, which
are equal to the official TensorFlow graph.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from models import (
  layers,
  maxvit_blocks,
  normalization,
  registry,
  rows,
  taps,
)
from models.backbone import Backbone
from models.maxvit_blocks import KERNEL_INIT, Block, LayerNorm

Dtype = layers.Dtype

BATCH_NORM_EPSILON = 1e-3


class MaxViT(Backbone):
  """MaxViT, from an image to logits or to a pyramid of feature maps.

  Attributes:
    stem_widths: channels of the stem's two convolutions.
    widths: channels of each stage.
    depths: blocks of each stage.
    layout: layers of a block in order, "mbconv" or names of token mixers; or a
      tuple of such tuples, one for each stage. A stage without "mbconv" shrinks
      the image by the shortcut of one.
    head_dim: channels of an attention head.
    window_size: side of the windows and grids, in tokens.
    bias_table_window: side of the window that the stored tables of relative
      biases are for; they are resized at run time. `window_size` if None.
    bias_ranks: ranks of the layers whose biases are products of two factors, by
      their paths as "stage_0/block_1/grid_attention"; others have tables. See
      `bias_factors.convert`.
    scale_by: of the scores of windows, "constant", or "entropy" for windows of
      another size than in training; see `token_mixers.WindowAttention`.
    expansion: hidden width over output width, in MBConv and feed-forward layer.
    squeeze_ratio: width of squeeze-excite's bottleneck over output width.
    batch_norm_momentum: share of the old value in an update of the running
      statistics; runs of few steps want less.
    stochastic_depth_rate: probability that the residual branches of the block
      after the last one would be dropped; it grows linearly from 0.
    num_classes: number of logits; if 0, `model.apply` gives the normalised mean
      of the last feature map.
    attention_implementation: which implementation of the attention runs, see
      `attention.kernels.dispatch`.
    feed_forward_implementation: which implementation of the feed-forward layers
      with their normalisation runs, see `feed_forward_branch.kernel`.
  """

  stem_widths: tuple[int, int] = (64, 64)
  widths: tuple[int, ...] = (64, 128, 256, 512)
  depths: tuple[int, ...] = (2, 2, 5, 2)
  layout: tuple[Any, ...] = ("mbconv", "block_attention", "grid_attention")
  head_dim: int = 32
  window_size: int = 7
  bias_table_window: int | None = None
  bias_ranks: Mapping[str, int] = FrozenDict()
  scale_by: str = "constant"
  expansion: int = 4
  squeeze_ratio: float = 0.25
  batch_norm_momentum: float = 0.99
  attention_implementation: str = "auto"
  feed_forward_implementation: str = "auto"

  def setup(self):
    if len(self.depths) != len(self.widths):
      raise ValueError(
        f"depths is {self.depths}; widths {self.widths} need one depth each"
      )
    for layer in self.bias_ranks:
      if layer not in self.biased_layers:
        raise registry.unknown("layer of bias_ranks", layer, self.biased_layers)
    dtypes = self.dtypes
    self.stem = Stem(self.stem_widths, self._batch_norm, **dtypes)
    self.stage = self._stages()
    self.head = Head(self.num_classes, **dtypes)

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    del train
    return self.head(maps[-1])

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns the feature maps of stem and stages: strides 2, 4, 8, ..."""
    self._check_images(x)
    maps = [self.stem(x, train)]
    for stage in self.stage:
      maps.append(stage(maps[-1], train))
    return maps

  @property
  def stage_layouts(self) -> tuple[tuple[str, ...], ...]:
    """The layers of a block, for each stage."""
    layouts = self.layout
    if all(isinstance(layer, str) for layer in layouts):
      layouts = (tuple(layouts),) * len(self.widths)
    if len(layouts) != len(self.widths):
      raise ValueError(
        f"layout has {len(layouts)} entries; widths {self.widths} need one "
        "tuple of names for all stages, or one tuple each"
      )
    return tuple(layouts)

  @property
  def biased_layers(self) -> list[str]:
    """Paths of the layers that have relative biases, in order."""
    return [
      f"stage_{stage}/block_{block}/{name}"
      for stage, (layout, depth) in enumerate(
        zip(self.stage_layouts, self.depths, strict=True)
      )
      for block in range(depth)
      for kind, name in zip(
        layout, maxvit_blocks.layer_names(layout), strict=True
      )
      if kind in ("block_attention", "grid_attention")
    ]

  @property
  def size_multiple(self) -> int:
    """The number of which height and width of images must be multiples."""
    strides = [
      2 ** (stage + 2)
      for stage, layout in enumerate(self.stage_layouts)
      if set(layout) - {"mbconv"}
    ]
    # The deepest attention decides; elsewhere pixels must just pair up.
    windows = self.window_size * max(strides) if strides else 1
    return math.lcm(windows, 2 ** (len(self.widths) + 1))

  def _check_images(self, x: jax.Array) -> None:
    step = self.size_multiple
    layers.check_images(x)
    height, width = x.shape[1:3]
    if height % step or width % step:
      raise ValueError(
        f"x is {height} x {width}; with window_size {self.window_size} and "
        f"{len(self.widths)} stages height and width must be multiples of "
        f"{step}, as {step} or {2 * step}"
      )

  @property
  def _batch_norm(self) -> functools.partial:
    return functools.partial(
      normalization.BatchNorm,
      momentum=self.batch_norm_momentum,
      epsilon=BATCH_NORM_EPSILON,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

  def _stages(self) -> list[layers.Stage]:
    rates_of_stages = layers.linear_rates(
      self.stochastic_depth_rate, self.depths, last=sum(self.depths)
    )
    stages = []
    for width, rates, layout in zip(
      self.widths, rates_of_stages, self.stage_layouts, strict=True
    ):
      block = functools.partial(
        nn.remat(Block, static_argnums=(2,)) if self.remat else Block,
        width=width,
        layout=layout,
        head_dim=self.head_dim,
        window_size=self.window_size,
        bias_table_window=self.bias_table_window,
        bias_ranks=self.bias_ranks,
        scale_by=self.scale_by,
        attention_implementation=self.attention_implementation,
        feed_forward_implementation=self.feed_forward_implementation,
        expansion=self.expansion,
        squeeze_ratio=self.squeeze_ratio,
        batch_norm=self._batch_norm,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
      )
      stages.append(layers.Stage(block, 2, rates))
    return stages


class Stem(nn.Module):
  """Two 3 x 3 convolutions, the first of stride 2."""

  widths: Sequence[int]
  batch_norm: functools.partial
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    conv = functools.partial(
      layers.Conv, kernel_size=(3, 3), kernel_init=KERNEL_INIT, **dtypes
    )
    x = conv(self.widths[0], strides=(2, 2), name="conv_0")(x)
    x = self.batch_norm(use_running_average=not train, name="norm_0")(x)
    x = rows.by_rows(conv(self.widths[1], name="conv_1")(nn.gelu(x)))
    return taps.tap(self, "hidden_state", x)


class Head(nn.Module):
  """Mean over the image, layer norm, a hidden layer with tanh, logits."""

  num_classes: int
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = LayerNorm(name="norm", **dtypes)(x.mean((1, 2)))
    if self.num_classes:
      dense = functools.partial(layers.Dense, kernel_init=KERNEL_INIT, **dtypes)
      x = jnp.tanh(dense(x.shape[-1], name="hidden")(x))
      x = dense(self.num_classes, name="logits")(x)
    return x.astype(jnp.float32)


_SIZES = {
  "tiny": {
    "stem_widths": (64, 64),
    "widths": (64, 128, 256, 512),
    "depths": (2, 2, 5, 2),
    "stochastic_depth_rate": 0.2,
  },
  "small": {
    "stem_widths": (64, 64),
    "widths": (96, 192, 384, 768),
    "depths": (2, 2, 5, 2),
    "stochastic_depth_rate": 0.3,
  },
  "base": {
    "stem_widths": (64, 64),
    "widths": (96, 192, 384, 768),
    "depths": (2, 6, 14, 2),
    "stochastic_depth_rate": 0.4,
  },
  "large": {
    "stem_widths": (128, 128),
    "widths": (128, 256, 512, 1024),
    "depths": (2, 6, 14, 2),
    "stochastic_depth_rate": 0.6,
  },
  "xlarge": {
    "stem_widths": (192, 192),
    "widths": (192, 384, 768, 1536),
    "depths": (2, 6, 14, 2),
    "stochastic_depth_rate": 0.7,
  },
}
_WINDOWS = {224: 7, 384: 12, 512: 16}


def _variants() -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
  """Names every size at every resolution, with both kinds of bias table.

  The official models keep the table of the 224-pixel model and resize it. Those
  with "tf" in their name, as in timm, store a table for their own window.
  """
  variants = {}
  for size, hyperparameters in _SIZES.items():
    for resolution, window in _WINDOWS.items():
      own = {**hyperparameters, "window_size": window}
      official = {**own, "bias_table_window": 7}
      variants[f"maxvit_{size}_{resolution}"] = (MaxViT, official)
      variants[f"maxvit_{size}_tf_{resolution}"] = (MaxViT, own)
  return variants


KIND = "image"
# Heads, hidden channels of feed-forward layers and those of MBConv.
SHARDING_RULES = (
  ("attention/qkv/kernel", (None, None, "model", None)),
  ("attention/qkv/bias", (None, "model", None)),
  ("attention/relative_bias_table", ("model", None, None)),
  ("attention/(query|key)_bias_factor", (None, "model", None)),
  ("attention/out/kernel", ("model", None, None)),
  ("(ffn|se)/expand/kernel", (None, "model")),
  ("(ffn|se)/expand/bias", ("model",)),
  ("ffn/shrink/kernel", ("model", None)),
  ("expand_conv/kernel", (None, "model")),
  ("(expand|depthwise)_norm/(scale|bias|mean|var)", ("model",)),
  ("depthwise_conv/kernel", (None, None, None, "model")),
  ("se/reduce/kernel", ("model", None)),
  ("shrink_conv/kernel", ("model", None)),
)
VARIANTS = _variants()
# The last stage, a 32nd of the image, is one window.
IMAGE_SIZES = {
  name: 32 * fields["window_size"] for name, (_, fields) in VARIANTS.items()
}
