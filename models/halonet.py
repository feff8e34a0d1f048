"""HaloNet: residual networks whose convolutions are local attention.

"Scaling Local Self-Attention for Parameter Efficient Visual Backbones" (arXiv
2103.12731). No code was released. `halonet_h0` to `halonet_h7` are the paper's
by their published parameter counts; the others are timm's networks, to whose
logits and gradients the tests hold them. timm's halonet_h1 is here called
`halonet_h1_timm`: it has 8 heads in each stage, the paper's has 4 in the first.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from models import halonet_blocks, layers, normalization
from models.backbone import Backbone

Dtype = layers.Dtype

BATCH_NORM_EPSILON = 1e-5
ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}
# He initialisation over the outputs.
CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
CHOICES = {
  "stem": ("conv7", "conv3", "tiered"),
  "shortcut": ("average_pool", "conv", "none"),
  "activation": tuple(ACTIVATIONS),
  "channel_attention": ("none", "se", "eca"),
}
BLOCKS = ("conv", "halo", "global")


class HaloNet(Backbone):
  """HaloNet and its hybrids, from an image to logits or a feature pyramid.

  Attributes:
    layout: for each stage the kinds of its blocks: "conv", a 3 x 3 convolution;
      "halo", halo attention; "global", attention of all tokens.
    widths: channels that the blocks of each stage put out.
    bottleneck_widths: channels within the blocks of each stage, of which
      attention makes its queries and keys.
    expansion: channels within a block over its input's, where
      `bottleneck_widths` is None.
    strides: step of the first block of each stage.
    heads: heads of each stage.
    block_size: side of the blocks of queries, in tokens.
    halo_size: tokens that keys reach beyond a block, on each side.
    key_ratio: channels of queries and keys over those within the block.
    key_dim: channels of a head's queries and keys; takes the place of
      `key_ratio` if given.
    value_ratio: channels of values over those within the block, the paper's rv.
    mask_padding: whether keys beyond the edge are left out of the softmax.
    norm_after_attention: whether batch norm and activation follow attention.
    stem: "conv7", a 7 x 7 convolution; "conv3", a 3 x 3 one; or "tiered",
      three of 3 x 3.
    stem_width: channels of the stem.
    stem_pool: whether max pooling ends the stem; without it the last
      convolution of "tiered" has stride 2.
    shortcut: where shape changes: "average_pool" and a 1 x 1 convolution,
      "conv", that convolution with a stride, or "none", no shortcut.
    group_width: channels of a group in 3 x 3 convolutions; all if 0.
    channel_attention: in blocks of convolutions, "se", squeeze-excite, "eca"
      (arXiv 1910.03151), or "none".
    squeeze_ratio: width of squeeze-excite's bottleneck over the block's.
    linear_output: whether blocks end without activation.
    final_width: channels of a last 1 x 1 convolution; none if 0.
    activation: "relu" or "silu".
    image_size: side of the images that positions of "global" blocks are for;
      without such blocks any size will do.
    batch_norm_momentum: share of the old value in an update of the running
      statistics.
    stochastic_depth_rate: probability that the residual branch of the last
      block is dropped; it grows linearly from 0 in the first.
    dropout_rate: probability of dropping a channel before the logits.
    num_classes: number of logits; if 0, `model.apply` gives the mean of the
      last feature map.
    attention_implementation: which implementation of the attention runs, see
      `attention.kernels.dispatch`.
  """

  layout: tuple[tuple[str, ...], ...] = (("halo",) * 3,) * 4
  widths: tuple[int, ...] = (64, 128, 256, 512)
  bottleneck_widths: tuple[int, ...] | None = (64, 128, 256, 512)
  expansion: int = 1
  strides: tuple[int, ...] = (1, 2, 2, 2)
  heads: tuple[int, ...] = (8, 8, 8, 8)
  block_size: int = 8
  halo_size: int = 3
  key_ratio: float = 1.0
  key_dim: int | None = None
  value_ratio: float = 1.0
  mask_padding: bool = False
  norm_after_attention: bool = True
  stem: str = "conv7"
  stem_width: int = 64
  stem_pool: bool = True
  shortcut: str = "conv"
  group_width: int = 0
  channel_attention: str = "none"
  squeeze_ratio: float = 1 / 16
  linear_output: bool = False
  final_width: int = 0
  activation: str = "relu"
  image_size: int = 256
  batch_norm_momentum: float = 0.9
  dropout_rate: float = 0.0
  attention_implementation: str = "auto"

  def setup(self):
    self._check_fields()
    conv = self._conv
    self.stem_conv = halonet_blocks.Stem(
      self.stem, self.stem_width, self.stem_pool, conv
    )
    self.stage = self._stages(conv)
    if self.final_width:
      self.final_conv = conv(self.final_width)
    self.head = layers.Head(
      self.num_classes, self.dropout_rate, self.dtype, self.param_dtype
    )

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns the feature maps of stem and stages: strides 2, 4, 8, ...

    Sizes that the stride does not divide are rounded up.
    """
    layers.check_images(x)
    half, x = self.stem_conv(x, train)
    maps = [half]
    for stage in self.stage:
      x = stage(x, train)
      maps.append(x)
    return maps

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    x = maps[-1]
    if self.final_width:
      x = self.final_conv(x, train)
    return self.head(x, train)

  @property
  def size_multiple(self) -> int:
    """A side of images that the model takes, as its multiples."""
    has_global = any("global" in blocks for blocks in self.layout)
    return self.image_size if has_global else 32

  def _check_fields(self) -> None:
    for field, choices in CHOICES.items():
      if getattr(self, field) not in choices:
        raise ValueError(
          f"{field} is {getattr(self, field)!r}; it must be one of {choices}"
        )
    for kind in {kind for blocks in self.layout for kind in blocks}:
      if kind not in BLOCKS:
        raise ValueError(f"layout has {kind!r}; its blocks must be of {BLOCKS}")
    for field in ("widths", "bottleneck_widths", "strides", "heads"):
      values = getattr(self, field)
      if values is not None and len(values) != len(self.layout):
        raise ValueError(
          f"{field} is {values}; the {len(self.layout)} stages of layout need "
          "one each"
        )

  @property
  def _conv(self) -> functools.partial:
    """Makes a convolution, its normalisation and activation, given a width."""
    dtypes = self.dtypes
    batch_norm = functools.partial(
      normalization.BatchNorm,
      momentum=self.batch_norm_momentum,
      epsilon=BATCH_NORM_EPSILON,
      **dtypes,
    )
    return functools.partial(
      layers.ConvNorm,
      batch_norm=batch_norm,
      activation=ACTIVATIONS[self.activation],
      kernel_init=CONV_INIT,
      **dtypes,
    )

  def _stages(self, conv: functools.partial) -> list[layers.Stage]:
    rates = layers.linear_rates(
      self.stochastic_depth_rate, [len(kinds) for kinds in self.layout]
    )
    block_class = halonet_blocks.Block
    if self.remat:
      block_class = nn.remat(block_class, static_argnums=(2,))
    dtypes = self.dtypes
    stages, stride = [], 2 if self.stem == "conv3" else 4
    for i, kinds in enumerate(self.layout):
      stride *= self.strides[i]
      mixer = functools.partial(
        halonet_blocks.create_mixer,
        heads=self.heads[i],
        halo={
          "block_size": self.block_size,
          "halo_size": self.halo_size,
          "mask_padding": self.mask_padding,
        },
        side=-(-self.image_size // stride),
        key_ratio=self.key_ratio,
        key_dim=self.key_dim,
        value_ratio=self.value_ratio,
        implementation=self.attention_implementation,
        **dtypes,
      )
      block = functools.partial(
        block_class,
        width=self.widths[i],
        bottleneck_width=self.bottleneck_widths and self.bottleneck_widths[i],
        expansion=self.expansion,
        mixer=mixer,
        norm_after_attention=self.norm_after_attention,
        shortcut=self.shortcut,
        group_width=self.group_width,
        channel_attention=self.channel_attention,
        squeeze_ratio=self.squeeze_ratio,
        linear_output=self.linear_output,
        activation=ACTIVATIONS[self.activation],
        conv=conv,
        **dtypes,
      )
      fields = tuple({"kind": kind} for kind in kinds)
      stages.append(layers.Stage(block, self.strides[i], rates[i], fields))
    return stages


# b, h, rv, rb, blocks of the third stage, df, side of the images.
_PAPER = {
  "h0": (8, 3, 1, 0.5, 7, 0, 256),
  "h1": (8, 3, 1, 1, 10, 0, 256),
  "h2": (8, 3, 1, 1.25, 11, 0, 256),
  "h3": (10, 3, 1, 1.5, 12, 1024, 320),
  "h4": (12, 2, 1, 3, 12, 1280, 384),
  "h5": (14, 2, 2.5, 2, 23, 1536, 448),
  "h6": (8, 4, 3, 2.75, 24, 1536, 512),
  "h7": (10, 3, 4, 3.5, 26, 2048, 600),
}


def _paper(name: str, convolutions: int = 0) -> dict[str, Any]:
  """Fields of one of the paper's, its first stages of convolutions."""
  block, halo, value, output, third, final, size = _PAPER[name]
  widths = (64, 128, 256, 512)
  return {
    "layout": tuple(
      ("conv" if i < convolutions else "halo",) * depth
      for i, depth in enumerate((3, 3, third, 3))
    ),
    "bottleneck_widths": widths,
    "widths": tuple(int(output * width) for width in widths),
    "heads": (4, 8, 8, 8),
    "block_size": block,
    "halo_size": halo,
    "value_ratio": value,
    "final_width": final,
    "image_size": size,
  }


_C, _H, _G = "conv", "halo", "global"
# What several of timm's have in common: a ResNet's widths, its stem in three.
_TIMM = {
  "widths": (256, 512, 1024, 2048),
  "stem": "tiered",
  "activation": "silu",
}
_TIMM_26 = ((_C, _C), (_C, _C), (_C, _H), (_H, _H))
_TIMM_VARIANTS = {
  "halonet_h1_timm": {"layout": ((_H,) * 3, (_H,) * 3, (_H,) * 10, (_H,) * 3)},
  "halonet26t": {
    **_TIMM,
    "layout": _TIMM_26,
    "halo_size": 2,
    "activation": "relu",
  },
  "sehalonet33ts": {
    **_TIMM,
    "layout": ((_C, _C), (_C, _C, _H), (_C, _C, _H), (_H, _H)),
    "widths": (256, 512, 1024, 1536),
    "stem_pool": False,
    "channel_attention": "se",
    "final_width": 1280,
  },
  "halonet50ts": {
    **_TIMM,
    "layout": ((_C,) * 3, (_C, _C, _C, _H), (_C, _H) * 3, (_C, _H, _C)),
    "heads": (8, 4, 8, 8),
  },
  "eca_halonext26ts": {
    **_TIMM,
    "layout": _TIMM_26,
    "halo_size": 2,
    "key_dim": 16,
    "group_width": 16,
    "channel_attention": "eca",
  },
  "haloregnetz_b": {
    "layout": ((_C,) * 2, (_C,) * 6, (_C, _C, _C, _H) * 3, (_H,) * 2),
    "widths": (48, 96, 192, 288),
    "bottleneck_widths": None,
    "expansion": 3,
    "strides": (2, 2, 2, 2),
    "block_size": 7,
    "halo_size": 2,
    "key_ratio": 0.33,
    "stem": "conv3",
    "stem_width": 32,
    "stem_pool": False,
    "shortcut": "none",
    "group_width": 16,
    "channel_attention": "se",
    "squeeze_ratio": 0.25,
    "linear_output": True,
    "final_width": 1536,
    "activation": "silu",
    "image_size": 224,
  },
  "halo2botnet50ts_256": {
    **_TIMM,
    "layout": ((_C,) * 3, (_C, _H) * 2, (_C, _H) * 3, (_C, _G, _C)),
    "stem_pool": False,
  },
}


def _variants() -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
  """Names the paper's models, its hybrids of the largest, and timm's.

  `halonet_h7_conv2` has convolutions in its first two stages.
  """
  fields = {f"halonet_{name}": _paper(name) for name in _PAPER}
  for stages in (1, 2, 3):
    fields[f"halonet_h7_conv{stages}"] = _paper("h7", stages)
  fields |= _TIMM_VARIANTS
  return {name: (HaloNet, values) for name, values in fields.items()}


KIND = "image"
# Heads, and what reads them.
SHARDING_RULES = (
  ("attention/(q|kv)/kernel", (None, "model", None)),
  ("attention_norm/(scale|bias|mean|var)", ("model",)),
  ("conv_out/conv/kernel", ("model", None)),
)
VARIANTS = _variants()
IMAGE_SIZES = {
  name: fields.get("image_size", 256) for name, (_, fields) in VARIANTS.items()
}
