"""HAT: windows, convolutions and overlapping windows (2205.04437, 2309.05239).

"Activating More Pixels in Image Super-Resolution Transformer". The tests hold
it equal to spandrel's port of the released networks.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, taps
from models.hat_blocks import HybridBlock, LayerNorm, OverlappingBlock
from models.restoration_layers import RGB_MEAN, Restorer, conv, pixel_shuffle

# By what one step of the upsampling makes larger, for each scale.
STEPS = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}


class HAT(Restorer):
  """From images to images `scale` times as large.

  Groups of blocks of window attention, each with overlapping windows and a
  convolution behind, and a residual connection around.

  Attributes:
    width: channels of the feature maps.
    depths: blocks of each group, of which every other one shifts its windows by
      half of one.
    heads: attention heads; they must divide `width`.
    window_size: side of a window in pixels.
    halo_size: pixels by which overlapping windows reach beyond a window, on
      each side.
    mlp_width: channels within the feed-forward layers.
    conv_width: channels between a block's convolutions.
    gate_width: channels within the gate of their channels.
    upsample_width: channels of what is made larger.
    conv_scale: factor of the convolutional branch. Files of weights do not have
      it, so it has to be said; the published networks have 0.01.
    image_range: what the input is multiplied by, and the output divided by. It
      has to be said too; the published networks have 1.
    residual: whether what the network makes is added to its input, enlarged by
      bicubic interpolation, and not to the mean of photographs. The published
      networks do not; a short training begins with it where it would otherwise
      take thousands of steps to come.
    stochastic_depth_rate: probability of dropping the branches of the last
      block; it grows linearly from 0.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
  """

  width: int = 180
  scale: int = 4
  depths: tuple[int, ...] = (6,) * 6
  heads: int = 6
  window_size: int = 16
  halo_size: int = 4
  mlp_width: int = 360
  conv_width: int = 60
  gate_width: int = 6
  upsample_width: int = 64
  conv_scale: float | None = None
  image_range: float | None = None
  residual: bool = False
  stochastic_depth_rate: float = 0.1
  implementation: str = "auto"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps RGB in [0, 1] to RGB that is not clipped.

    Args:
      x: [batch, height, width, 3], both sides multiples of `window_size`.
      train: whether branches are dropped at random.

    Returns:
      float32 [batch, scale * height, scale * width, 3].

    Raises:
      ValueError: for another shape or dtype, or fields that do not fit.
    """
    _check_fields(self)
    self._check_images(x)
    dtypes, width = self.dtypes, self.width
    mean = jnp.asarray(RGB_MEAN)[None, None, None]
    image = x
    x = ((x.astype(jnp.float32) - mean) * self.image_range).astype(self.dtype)
    first = x = conv(width, 3, name="first", **dtypes)(x)
    x = LayerNorm(name="embed_norm", **dtypes)(x)
    rates = layers.linear_rates(self.stochastic_depth_rate, self.depths)
    for i, rates_of_group in enumerate(rates):
      x = self._group(i, rates_of_group)(x, train)
    x = LayerNorm(name="norm", **dtypes)(x)
    x = first + conv(width, width, name="body", **dtypes)(x)
    wide = self.upsample_width
    x = nn.leaky_relu(conv(wide, width, name="before_upsample", **dtypes)(x))
    for i, step in enumerate(STEPS[self.scale]):
      x = conv(wide * step**2, wide, name=f"upsample_{i}", **dtypes)(x)
      x = pixel_shuffle(x, step)
    # Its rounding would be the image's.
    x = conv(3, wide, name="last", param_dtype=self.param_dtype)(
      x.astype(jnp.float32)
    )
    x = x / self.image_range
    if not self.residual:
      return x + mean
    image = image.astype(jnp.float32)
    return x + jax.image.resize(image, x.shape, "cubic", antialias=False)

  def _group(self, i: int, rates: tuple[float, ...]) -> nn.Module:
    return Group(
      functools.partial(
        HybridBlock,
        conv_width=self.conv_width,
        gate_width=self.gate_width,
        conv_scale=self.conv_scale,
      ),
      functools.partial(OverlappingBlock, halo_size=self.halo_size),
      {
        "heads": self.heads,
        "window_size": self.window_size,
        "mlp_width": self.mlp_width,
        "implementation": self.implementation,
        **self.dtypes,
      },
      rates,
      self.remat,
      name=f"group_{i}",
    )

  @property
  def size_multiple(self) -> int:
    """The number of which height and width of images must be multiples."""
    return self.window_size


class Group(nn.Module):
  """Hybrid blocks, an overlapping block, a convolution, and the way around.

  Attributes:
    hybrid: makes a hybrid block.
    overlapping: makes the overlapping block.
    shared: fields of both.
    stochastic_depth_rates: of each hybrid block.
    remat: whether the backward pass computes each block again.
  """

  hybrid: functools.partial
  overlapping: functools.partial
  shared: Any
  stochastic_depth_rates: tuple[float, ...]
  remat: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    width, y = x.shape[-1], x
    hybrid, overlapping = self.hybrid, self.overlapping
    if self.remat:
      hybrid = _rematerialised(hybrid, static_argnums=(2,))
      overlapping = _rematerialised(overlapping)
    for i, rate in enumerate(self.stochastic_depth_rates):
      y = hybrid(
        shift=i % 2 * (self.shared["window_size"] // 2),
        stochastic_depth_rate=rate,
        name=f"block_{i}",
        **self.shared,
      )(y, train)
    y = overlapping(name="overlapping", **self.shared)(y)
    dtypes = {key: self.shared[key] for key in ("dtype", "param_dtype")}
    y = conv(width, width, name="conv", **dtypes)(y)
    return taps.tap(self, "hidden_state", x + y)


def _rematerialised(block: functools.partial, **options) -> functools.partial:
  return functools.partial(nn.remat(block.func, **options), **block.keywords)


def _check_fields(model: HAT) -> None:
  """Raises ValueError for fields that do not fit."""
  for field, published in (("conv_scale", 0.01), ("image_range", 1.0)):
    if getattr(model, field) is None:
      raise ValueError(
        f"{field} is None; no file of weights has it, so give that of the "
        f"training: the published networks have {published}"
      )
  if model.image_range <= 0:
    raise ValueError(f"image_range is {model.image_range}; it must be above 0")
  if model.scale not in STEPS:
    raise ValueError(f"scale is {model.scale}; it must be one of {[*STEPS]}")
  widths = ("mlp_width", "conv_width", "gate_width", "upsample_width")
  for field in ("width", "heads", *widths):
    if getattr(model, field) < 1:
      raise ValueError(
        f"{field} is {getattr(model, field)}; it must be 1 or more"
      )
  if model.width % model.heads:
    raise ValueError(
      f"heads is {model.heads}, which does not divide width={model.width}"
    )
  if not model.depths or min(model.depths) < 1:
    raise ValueError(
      f"depths is {model.depths}; there must be a group or more, each of 1 "
      "block or more"
    )
  if model.window_size < 2 or model.halo_size < 0:
    raise ValueError(
      f"window_size is {model.window_size} and halo_size {model.halo_size}; "
      "they must be at least 2 and 0"
    )


_SIZES = {
  "hat_s": {"width": 144, "mlp_width": 288, "conv_width": 6, "gate_width": 6},
  "hat": {},
  "hat_l": {"depths": (6,) * 12},
}
_SCALES = {"conv_scale": 0.01, "image_range": 1.0}
KIND = "restoration"
# Heads, and hidden channels of feed-forward layers.
SHARDING_RULES = (
  ("qkv/kernel", (None, None, "model", None)),
  ("qkv/bias", (None, "model", None)),
  ("relative_bias_table", ("model", None, None)),
  ("(attention|overlapping)/out/kernel", ("model", None, None)),
  ("ffn/expand/kernel", (None, "model")),
  ("ffn/expand/bias", ("model",)),
  ("ffn/shrink/kernel", ("model", None)),
)
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  f"{name}_x{scale}": (HAT, {**fields, **_SCALES, "scale": scale})
  for name, fields in _SIZES.items()
  for scale in (2, 3, 4)
}
