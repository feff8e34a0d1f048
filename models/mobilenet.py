"""MobileNet V1 and V2, and light modules within, behind or for their blocks.

"MobileNets" (arXiv 1704.04861) and "MobileNetV2: Inverted Residuals and Linear
Bottlenecks" (1801.04381), to whose logits in timm the tests hold them. Where
ELA (2403.01123) and ULSAM (2006.15102) are in these networks is in fields.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import FrozenDict

from models import feature_gates, layers, normalization, rows, taps
from models.backbone import Backbone

BATCH_NORM_EPSILON = 1e-5
# He initialisation over the outputs; of depthwise filters each has one.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
DEPTHWISE_INIT = nn.initializers.normal((2 / 9) ** 0.5)
V1 = (
  (0, 64, 1, 1),
  (0, 128, 2, 2),
  (0, 256, 2, 2),
  (0, 512, 6, 2),
  (0, 1024, 2, 2),
)
V2 = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


class MobileNet(Backbone):
  """A MobileNet, from an image to logits or to a feature pyramid.

  Attributes:
    stages: for each stage the expansion of its blocks, their output channels,
      how many there are, and the stride of the first. Expansion 0 is a block of
      V1: a depthwise and a 1 x 1 convolution, each with an activation. Others
      are V2's: that many times as many channels within, an output without
      activation, and a shortcut where shapes agree.
    width_multiplier: of all channels, rounded to multiples of 8 as timm does.
    stem_width: channels of the first convolution.
    final_width: channels of a last 1 x 1 convolution, which a multiplier below
      1 leaves as they are; none if 0.
    gate: a light module, a key of `feature_gates.GATES`, or "none". Without
      `insert` and `replace` it is within each block, after the depthwise
      convolution, as ELA's authors have it; but not where expansion is 1.
    gate_options: its fields.
    insert: numbers of the blocks, from 0 over all stages, behind which there is
      a gate, as ULSAM's authors have it.
    replace: numbers of the blocks that a gate stands for, which must have
      stride 1 and as many channels out as in. ULSAM's paper names none; the
      numbers of parameters that it has say which stage they are of.
    batch_norm_momentum: share of the old value in an update of the running
      statistics.
    dropout_rate: probability of dropping a channel before the logits.
    stochastic_depth_rate: probability of dropping the residual branch of the
      last block; it grows linearly from 0.
    num_classes: number of logits; if 0, `model.apply` gives the mean of the
      last map.
  """

  stages: tuple[tuple[int, ...], ...] = V2
  width_multiplier: float = 1.0
  stem_width: int = 32
  final_width: int = 1280
  gate: str = "none"
  gate_options: Mapping[str, Any] = FrozenDict()
  insert: tuple[int, ...] = ()
  replace: tuple[int, ...] = ()
  batch_norm_momentum: float = 0.9
  dropout_rate: float = 0.0

  def __post_init__(self):
    # Hashable, so that a model can be a static argument of jit.
    self.gate_options = FrozenDict(self.gate_options)
    super().__post_init__()

  def setup(self):
    self._check_fields()
    batch_norm = functools.partial(
      normalization.BatchNorm,
      momentum=self.batch_norm_momentum,
      epsilon=BATCH_NORM_EPSILON,
      **self.dtypes,
    )
    conv = functools.partial(
      layers.ConvNorm,
      batch_norm=batch_norm,
      activation=nn.relu6,
      kernel_init=KERNEL_INIT,
      **self.dtypes,
    )
    self.stem_conv = conv(self._width(self.stem_width), kernel_size=3, stride=2)
    self.stage = self._stages(conv, batch_norm)
    if self.final_width:
      self.final_conv = conv(
        max(self.final_width, self._width(self.final_width))
      )
    self.head = layers.Head(self.num_classes, self.dropout_rate, **self.dtypes)

  def features(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
    """Returns the last map of each stride: 2, 4, 8, ...

    Sizes that the stride does not divide are rounded up.
    """
    layers.check_images(x)
    maps = [self.stem_conv(x, train)]
    for stage, (*_, stride) in zip(self.stage, self.stages, strict=True):
      x = stage(maps[-1], train)
      maps = [*maps[: None if stride > 1 else -1], x]
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
    """The side of images, and its multiples, that every stride divides."""
    return 2 ** (1 + sum(stride > 1 for *_, stride in self.stages))

  def _width(self, width: int) -> int:
    """The multiple of 8 nearest to the scaled width, not below nine tenths."""
    scaled = width * self.width_multiplier
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded

  def _stages(self, conv, batch_norm) -> list[layers.Stage]:
    gate = feature_gates.maker(self.gate, self.gate_options, self.dtypes)
    depths = [depth for _, _, depth, _ in self.stages]
    rates = layers.linear_rates(self.stochastic_depth_rate, depths)
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    stages, number = [], 0
    for (expansion, width, depth, stride), own in zip(
      self.stages, rates, strict=True
    ):
      numbers = range(number, number + depth)
      number += depth
      make = functools.partial(
        block,
        expansion=expansion,
        width=self._width(width),
        gate=gate,
        conv=conv,
        batch_norm=batch_norm,
        **self.dtypes,
      )
      fields = tuple({"place": self._place(n, expansion)} for n in numbers)
      stages.append(layers.Stage(make, stride, own, fields))
    return stages

  def _place(self, number: int, expansion: int) -> str:
    """Where the gate of a block is."""
    if number in self.replace:
      return "instead"
    if self.insert or self.replace:
      return "behind" if number in self.insert else "nowhere"
    return "nowhere" if self.gate == "none" or expansion == 1 else "within"

  def _check_fields(self) -> None:
    for stage in self.stages:
      expansion, width, depth, stride = stage if len(stage) == 4 else (-1,) * 4
      if expansion < 0 or width < 1 or depth < 1 or stride not in (1, 2):
        raise ValueError(
          f"stages has {stage}; each must be expansion (0 for V1's blocks), "
          "width, depth and stride 1 or 2"
        )
    if self.width_multiplier <= 0:
      raise ValueError(
        f"width_multiplier is {self.width_multiplier}; it must be positive"
      )
    self._check_numbers()

  def _check_numbers(self) -> None:
    count = sum(depth for _, _, depth, _ in self.stages)
    able = self._replaceable()
    for field in ("insert", "replace"):
      for number in getattr(self, field):
        if not 0 <= number < count:
          raise ValueError(
            f"{field} has {number}; blocks are from 0 to {count - 1}"
          )
    if self.gate == "none" and self.insert:
      raise ValueError(f"insert is {self.insert}, but gate is 'none'")
    if both := set(self.insert) & set(self.replace):
      raise ValueError(f"insert and replace both have {sorted(both)}")
    for number in self.replace:
      if number not in able:
        raise ValueError(
          f"replace has {number}, whose block changes the shape; those that do "
          f"not are {able}"
        )

  def _replaceable(self) -> list[int]:
    numbers, number, inputs = [], 0, self._width(self.stem_width)
    for _, width, depth, stride in self.stages:
      if stride == 1 and inputs == self._width(width):
        numbers.append(number)
      numbers += range(number + 1, number + depth)
      number, inputs = number + depth, self._width(width)
    return numbers


class Block(nn.Module):
  """A depthwise convolution between 1 x 1 ones; or a gate in its place."""

  expansion: int
  width: int
  stride: int
  place: str
  gate: functools.partial | None
  conv: functools.partial
  batch_norm: functools.partial
  stochastic_depth_rate: float
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / stride, W / stride, width]."""
    if self.place == "instead":
      # Without a gate, a block that is replaced is one that is not there.
      x = self.gate(name="gate")(x, train) if self.gate else x
      return taps.tap(self, "hidden_state", x)
    y = self._branch(x, train)
    if self.expansion and x.shape == y.shape:
      y = layers.StochasticDepth(self.stochastic_depth_rate)(y, train)
      y = x + y
    if self.place == "behind":
      y = self.gate(name="gate")(y, train)
    return taps.tap(self, "hidden_state", y)

  def _branch(self, x: jax.Array, train: bool) -> jax.Array:
    if self.expansion > 1:
      x = self.conv(self.expansion * x.shape[-1], name="expand")(x, train)
    x = DepthwiseNorm(
      self.stride, self.batch_norm, self.dtype, self.param_dtype, name="depth"
    )(x, train)
    if self.place == "within":
      x = self.gate(name="gate")(x, train)
    linear = {"activation": lambda x: x} if self.expansion else {}
    return rows.by_rows(self.conv(self.width, name="out", **linear)(x, train))


class DepthwiseNorm(nn.Module):
  """A 3 x 3 filter for each channel, batch norm, activation."""

  stride: int
  batch_norm: functools.partial
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = layers.DepthwiseConv(
      stride=self.stride,
      padding="symmetric",
      kernel_init=DEPTHWISE_INIT,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="conv",
    )(x)
    return nn.relu6(
      self.batch_norm(use_running_average=not train, name="norm")(x)
    )


KIND = "image"
# By version, stages and the last width; names as timm's, by the multiplier.
_VERSIONS = {
  "v1": ({"stages": V1, "final_width": 0}, (50, 75, 100)),
  "v2": ({"stages": V2}, (50, 100, 140)),
}
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  f"mobilenet{version}_{percent:03d}": (
    MobileNet,
    {**fields, "width_multiplier": percent / 100},
  )
  for version, (fields, percents) in _VERSIONS.items()
  for percent in percents
}
IMAGE_SIZES = dict.fromkeys(VARIANTS, 224)
