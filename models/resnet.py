"""ResNet-RS, and the residual networks that it grew from, as one model.

"Revisiting ResNets: Improved Training and Scaling Strategies" (arXiv
2103.07579): bottleneck blocks with squeeze-excite, the stem and shortcuts of
ResNet-D (arXiv 1812.01187). The tests hold its logits and gradients equal to
those of timm's resnetrs*, which are equal to the released TensorFlow graph.
`resnet18` to `resnet152` are torchvision's and timm's (arXiv 1512.03385, with
the stride in the 3 x 3 convolution).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import FrozenDict

from models import (
  feature_gates,
  layers,
  normalization,
  registry,
  resnet_rs_scaling,
  taps,
)
from models.backbone import Backbone

Dtype = layers.Dtype

BATCH_NORM_EPSILON = 1e-5
ACTIVATIONS = {"relu": nn.relu, "swish": nn.swish}
CHOICES = {
  "block": ("bottleneck", "basic"),
  "stem": ("deep", "deep_max_pool", "deep_skip_max_pool", "conv7"),
  "shortcut": ("average_pool", "conv"),
  "activation": tuple(ACTIVATIONS),
  "padding": ("symmetric", "same"),
  "stochastic_depth_rule": ("stage", "linear"),
}
GATE_PLACES = ("blocks", "within", "stem", "stages")


class ResNet(Backbone):
  """A residual network, from an image to logits or to a feature pyramid.

  Attributes:
    depths: blocks of each stage.
    widths: channels of each stage, of which "bottleneck" puts out four times as
      many.
    stem_widths: channels of the stem's three convolutions; "conv7" has one, of
      the last of these widths.
    block: "bottleneck", 1 x 1, 3 x 3, 1 x 1; or "basic", two of 3 x 3.
    stem: "deep", three 3 x 3 convolutions, and a fourth in place of the max
      pooling (`replace_stem_max_pool` of the official code); "deep_max_pool",
      with it; "deep_skip_max_pool", with neither, where the first block strides
      (`skip_stem_max_pool`); or "conv7", one 7 x 7 convolution and the pooling.
    shortcut: what shrinks the image beside a block that does: "average_pool",
      before the 1 x 1 convolution, or "conv", the convolution's stride.
    squeeze_ratio: width of squeeze-excite's bottleneck over output width; if 0,
      there is no squeeze-excite. Other gates do not look at it.
    gate: what weighs features, a key of `feature_gates.GATES`, as "ela" or
      "ulsam"; or "none".
    gate_options: its fields, as {"variant": "base", "residual": True}; those of
      squeeze-excite are `squeeze_ratio`.
    gate_places: where it is, some of GATE_PLACES: "blocks", at the end of each
      residual branch; "within", after the 3 x 3 convolution of a bottleneck and
      its activation, but at the end where a block is "basic", as ELA's code has
      it; "stem", after the pooling; "stages", after each stage, as ELA's code
      has it too.
    activation: "relu" or, as in the Model Garden, "swish"; squeeze-excite has
      ReLU within in any case.
    padding: "symmetric", or "same" as in the Model Garden; see
      `layers.ConvNorm`.
    batch_norm_momentum: share of the old value in an update of the running
      statistics. With the paper's 0 they are those of the last batch, and the
      moving average of all variables averages them.
    zero_last_scale: whether the last normalisation of a residual branch starts
      at 0, so that each block starts as its shortcut.
    stochastic_depth_rate: largest probability p of dropping a residual branch.
    stochastic_depth_rule: "stage", constant in a stage, p * 2/5, 3/5, 4/5, 5/5
      for four of them; or "linear", timm's, from 0 in the first block to p in
      the last.
    dropout_rate: probability of dropping a channel before the logits.
    num_classes: number of logits; if 0, `model.apply` gives the mean of the
      last feature map.
  """

  depths: tuple[int, ...] = (3, 4, 6, 3)
  widths: tuple[int, ...] = (64, 128, 256, 512)
  stem_widths: tuple[int, int, int] = (32, 32, 64)
  block: str = "bottleneck"
  stem: str = "deep"
  shortcut: str = "average_pool"
  squeeze_ratio: float = 0.25
  gate: str = "squeeze_excite"
  gate_options: Mapping[str, Any] = FrozenDict()
  gate_places: tuple[str, ...] = ("blocks",)
  activation: str = "relu"
  padding: str = "symmetric"
  batch_norm_momentum: float = 0.0
  zero_last_scale: bool = True
  stochastic_depth_rule: str = "stage"
  dropout_rate: float = 0.0

  def __post_init__(self):
    # Hashable, so that a model can be a static argument of jit.
    self.gate_options = FrozenDict(self.gate_options)
    super().__post_init__()

  def setup(self):
    self._check_fields()
    conv = functools.partial(
      self._conv, activation=ACTIVATIONS[self.activation]
    )
    gate = self._gate
    if gate and "stem" in self.gate_places:
      self.stem_gate = gate()
    self.stem_conv = Stem(self.stem_widths, self.stem == "conv7", conv)
    if self.stem == "deep":
      self.stem_pool = conv(self.stem_widths[-1], kernel_size=3, stride=2)
    self.stage = self._stages()
    self.head = layers.Head(
      self.num_classes, self.dropout_rate, self.dtype, self.param_dtype
    )

  def classify(
    self, maps: list[jax.Array], *, train: bool = False
  ) -> jax.Array:
    """Maps what `features` gives to logits [batch, classes]."""
    return self.head(maps[-1], train)

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns the feature maps of stem and stages: strides 2, 4, 8, ...

    Sizes that the stride does not divide are rounded up.
    """
    layers.check_images(x)
    maps = [self.stem_conv(x, train)]
    x = self._pool(maps[0], train)
    if self._gate and "stem" in self.gate_places:
      x = self.stem_gate(x, train)
    for stage in self.stage:
      x = stage(x, train)
      maps.append(x)
    return maps

  @property
  def size_multiple(self) -> int:
    """The side of images, and its multiples, that every stride divides."""
    return 2 ** (len(self.widths) + 1)

  @property
  def stochastic_depth_rates(self) -> tuple[tuple[float, ...], ...]:
    """The probability of dropping for each block of each stage."""
    if self.stochastic_depth_rule == "stage":
      stages = len(self.depths)
      return tuple(
        (self.stochastic_depth_rate * (stage + 2) / (stages + 1),) * depth
        for stage, depth in enumerate(self.depths)
      )
    return tuple(layers.linear_rates(self.stochastic_depth_rate, self.depths))

  def _check_fields(self) -> None:
    for field, choices in CHOICES.items():
      if getattr(self, field) not in choices:
        raise ValueError(
          f"{field} is {getattr(self, field)!r}; it must be one of {choices}"
        )
    if len(self.depths) != len(self.widths):
      raise ValueError(
        f"depths is {self.depths}; widths {self.widths} need one depth each"
      )
    if len(self.stem_widths) != 3:
      raise ValueError(
        f"stem_widths is {self.stem_widths}; it must be three widths"
      )
    if self.squeeze_ratio < 0:
      raise ValueError(
        f"squeeze_ratio is {self.squeeze_ratio}; it must not be negative"
      )
    for place in self.gate_places:
      if place not in GATE_PLACES:
        raise registry.unknown("place in gate_places", place, GATE_PLACES)

  def _pool(self, x: jax.Array, train: bool) -> jax.Array:
    if self.stem == "deep":
      return self.stem_pool(x, train)
    if self.stem == "deep_skip_max_pool":
      return x
    if self.padding == "same":
      return nn.max_pool(x, (3, 3), (2, 2), "SAME")
    return layers.max_pool(x)

  @property
  def _gate(self) -> functools.partial | None:
    """Makes a gate; None if there is none."""
    options = self.gate_options
    if self.gate == "squeeze_excite" and not options:
      if not self.squeeze_ratio:
        return None
      options = {"ratio": self.squeeze_ratio}
    return feature_gates.maker(self.gate, options, self.dtypes)

  @property
  def _conv(self) -> functools.partial:
    """Makes a convolution with its normalisation, given width and size."""
    dtypes = self.dtypes
    batch_norm = functools.partial(
      normalization.BatchNorm,
      momentum=self.batch_norm_momentum,
      epsilon=BATCH_NORM_EPSILON,
      **dtypes,
    )
    return functools.partial(
      layers.ConvNorm, batch_norm=batch_norm, padding=self.padding, **dtypes
    )

  def _stages(self) -> list[layers.Stage]:
    block = functools.partial(
      nn.remat(Block, static_argnums=(2,)) if self.remat else Block,
      kind=self.block,
      shortcut=self.shortcut,
      gate=self._gate,
      gate_name="se" if self.gate == "squeeze_excite" else "gate",
      activation=ACTIVATIONS[self.activation],
      zero_last_scale=self.zero_last_scale,
      conv=self._conv,
    )
    first_stride = 2 if self.stem == "deep_skip_max_pool" else 1
    places = frozenset(self.gate_places) - {"stem"}
    return [
      layers.Stage(
        functools.partial(block, width=width),
        2 if i else first_stride,
        rates,
        # The end of a stage is that of its last block.
        tuple(
          {"gate_places": places - {"stages"} if j + 1 < len(rates) else places}
          for j in range(len(rates))
        ),
      )
      for i, (width, rates) in enumerate(
        zip(self.widths, self.stochastic_depth_rates, strict=True)
      )
    ]


class Stem(nn.Module):
  """Three 3 x 3 convolutions, the first of stride 2; or one of 7 x 7."""

  widths: tuple[int, int, int]
  single: bool
  conv: functools.partial

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    widths = self.widths[-1:] if self.single else self.widths
    for i, width in enumerate(widths):
      x = self.conv(
        width,
        kernel_size=7 if self.single else 3,
        stride=1 if i else 2,
        name=f"conv_{i}",
      )(x, train)
    return taps.tap(self, "hidden_state", x)


class Block(nn.Module):
  """activation(shortcut(x) + drop(gate(convolutions(x))))."""

  kind: str
  width: int
  stride: int
  shortcut: str
  gate: functools.partial | None
  gate_name: str
  gate_places: frozenset[str]
  activation: Callable[[jax.Array], jax.Array]
  zero_last_scale: bool
  stochastic_depth_rate: float
  conv: functools.partial

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = self._residual(x, train)
    y = layers.StochasticDepth(self.stochastic_depth_rate)(y, train)
    x = self._shortcut(x, y.shape[-1], train)
    x = self.activation(x + y)
    if self.gate and "stages" in self.gate_places:
      x = self.gate(name="stage_gate")(x, train)
    return taps.tap(self, "hidden_state", x)

  def _residual(self, x: jax.Array, train: bool) -> jax.Array:
    # Kernel size, stride, width of each convolution.
    convolutions = {
      "bottleneck": (
        (1, 1, self.width),
        (3, self.stride, self.width),
        (1, 1, 4 * self.width),
      ),
      "basic": ((3, self.stride, self.width), (3, 1, self.width)),
    }[self.kind]
    last = len(convolutions) - 1
    within = 1  # The 3 x 3 convolution of a bottleneck, the last of "basic".
    for i, (kernel_size, stride, width) in enumerate(convolutions):
      options = {"activation": self.activation}
      if i == last:
        options = {"scale_init": self._last_scale_init}
      x = self.conv(
        width,
        kernel_size=kernel_size,
        stride=stride,
        name=f"conv_{i}",
        **options,
      )(x, train)
      if i == within and "within" in self.gate_places and self.gate:
        x = self.gate(name=f"inner_{self.gate_name}")(x, train)
    if self.gate and "blocks" in self.gate_places:
      x = self.gate(name=self.gate_name)(x, train)
    return x

  @property
  def _last_scale_init(self) -> layers.Initializer:
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    return zeros if self.zero_last_scale else ones

  def _shortcut(self, x: jax.Array, width: int, train: bool) -> jax.Array:
    if self.stride == 1 and x.shape[-1] == width:
      return x
    stride = self.stride
    if self.shortcut == "average_pool" and stride == 2:
      x, stride = layers.average_pool(x), 1
    return self.conv(width, stride=stride, name="shortcut")(x, train)


# What torchvision's and timm's plain networks have in common.
_PLAIN = {
  "stem": "conv7",
  "shortcut": "conv",
  "squeeze_ratio": 0.0,
  "batch_norm_momentum": 0.9,
}
_PLAIN_DEPTHS = {
  18: ("basic", (2, 2, 2, 2)),
  26: ("bottleneck", (2, 2, 2, 2)),
  34: ("basic", (3, 4, 6, 3)),
  50: ("bottleneck", (3, 4, 6, 3)),
  101: ("bottleneck", (3, 4, 23, 3)),
  152: ("bottleneck", (3, 8, 36, 3)),
}
# The sizes that timm evaluates its resnetrs* at by default.
_TIMM_SIZES = {
  50: 160,
  101: 192,
  152: 256,
  200: 256,
  270: 256,
  350: 288,
  420: 320,
}


def _variants() -> tuple[
  dict[str, tuple[type, dict[str, Any]]], dict[str, int]
]:
  """Names the published models, and the side of the images they are for.

  As `resnetrs_50_160`, by depth and resolution, and `resnetrs_50_swish_160`,
  the Model Garden's, which has 1001 classes of which the first is unused; as
  `resnetrs50`, timm's.
  """
  variants, sizes = {}, {}

  def add(name, size, **fields):
    variants[name], sizes[name] = (ResNet, fields), size

  for setting in resnet_rs_scaling.PUBLISHED:
    depth, size = setting.depth, setting.resolution
    fields = setting.model_fields()
    add(f"resnetrs_{depth}_{size}", size, **fields)
    if depth != 420:  # The Model Garden has none.
      garden = {"activation": "swish", "padding": "same", "num_classes": 1001}
      add(f"resnetrs_{depth}_swish_{size}", size, **fields, **garden)
  for depth, size in _TIMM_SIZES.items():
    depths = resnet_rs_scaling.DEPTHS[depth]
    add(f"resnetrs{depth}", size, depths=depths, stochastic_depth_rule="linear")
  for depth, (block, depths) in _PLAIN_DEPTHS.items():
    add(f"resnet{depth}", 224, depths=depths, block=block, **_PLAIN)
  return variants, sizes


KIND = "image"
VARIANTS, IMAGE_SIZES = _variants()
