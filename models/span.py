"""SPAN: super-resolution by convolutions that gate themselves (2311.12770).

"Swift Parameter-free Attention Network for Efficient Super-Resolution", with
the released code (github.com/hongyuanyu/SPAN) where the two differ. The tests
hold it equal to spandrel's, and to the scores of two released networks.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models import convolution, layers, taps
from models.lina_layers import uniform
from models.restoration_layers import (
  RGB_MEAN,
  Restorer,
  conv,
  dense,
  pixel_shuffle,
)

FORMS = ("train", "deploy")
# What a convolution of the form "train" is made of.
_BRANCHES = {"expand", "filter", "shrink", "skip"}
# The code counts grey levels.
_LEVELS = 255.0


class Span(Restorer):
  """From images to images `scale` times as large.

  Six blocks multiply what they make by an odd function of it, "attention"
  without parameters. What the last layer makes is the image: neither the mean
  nor the range of the input is undone.

  A convolution is stored in one of two forms. In "train" it is three in a row
  beside a fourth, which are multiplied into one 3 x 3 filter before it is used:
  the same function, borders included, and the same gradients as applying them
  one after the other, at a quarter of the products. In "deploy" it is that
  filter. `fold` turns the parameters of the first form into those of the other.

  Attributes:
    channels: channels of each feature map, C.
    blocks: how many there are.
    gain: by how much the branches of the form "train" are wider.
    form: how convolutions are stored, "train" or "deploy".
    gated: whether blocks are gated; without, they are plain residual ones.
  """

  channels: int = 48
  scale: int = 4
  blocks: int = 6
  gain: int = 2
  form: str = "train"
  gated: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps RGB in [0, 1] to RGB that is not clipped.

    Args:
      x: [batch, height, width, 3].
      train: nothing depends on it.

    Returns:
      float32 [batch, scale * height, scale * width, 3].

    Raises:
      ValueError: for another shape or dtype.
    """
    del train
    _check_fields(self)
    self._check_images(x)
    options = {"gain": self.gain, "form": self.form, **self.dtypes}
    block = nn.remat(Block) if self.remat else Block
    mean = jnp.asarray(RGB_MEAN)[None, None, None]
    x = ((x.astype(jnp.float32) - mean) * _LEVELS).astype(self.dtype)
    first = FoldedConv(self.channels, name="conv_1", **options)(x)
    x, maps = first, []
    for i in range(self.blocks):
      x, inner = block(
        self.channels, gated=self.gated, name=f"block_{i + 1}", **options
      )(x)
      maps.append(x)
    last = FoldedConv(self.channels, name="conv_2", **options)(x)
    # [B, H, W, 4 C]
    x = jnp.concatenate([first, last, maps[0], inner], -1)
    x = dense(self.channels, x.shape[-1], name="merge", **self.dtypes)(x)
    # Its rounding would be the image's.
    x = conv(
      3 * self.scale**2,
      self.channels,
      name="upsample",
      param_dtype=self.param_dtype,
    )(x.astype(jnp.float32))
    return pixel_shuffle(x, self.scale)


class Block(nn.Module):
  """Three convolutions, whose result plus the input is gated by the result.

  Returns [B, H, W, C] and the activation after the first convolution.
  """

  channels: int
  gain: int
  form: str
  dtype: layers.Dtype
  param_dtype: layers.Dtype
  gated: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    def convolve(i, x):
      return FoldedConv(
        self.channels,
        self.gain,
        self.form,
        self.dtype,
        self.param_dtype,
        name=f"conv_{i}",
      )(x)

    # The released code activates in place, so the last block hands on this and
    # not, as the paper draws it, what was before the activation.
    inner = nn.silu(convolve(1, x))
    y = convolve(3, nn.silu(convolve(2, inner)))
    x += y
    if self.gated:
      x *= taps.tap(self, "attention", nn.sigmoid(y) - 0.5)
    return taps.tap(self, "hidden_state", x), inner


class FoldedConv(nn.Module):
  """A 3 x 3 convolution with a bias, in one of FORMS; zeros beyond the edge.

  In the form "train" its parameters are those of one-pixel convolutions, from
  `gain` times the channels between them on: "expand", a 3 x 3 "filter" and
  "shrink" in a row, and "skip" beside the three. The edge is padded before the
  first of them, so pixels beyond it have its bias; that is why one filter does
  the same there too.
  """

  width: int
  gain: int
  form: str
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    inner, outer = self.gain * x.shape[-1], self.gain * self.width
    shapes = {
      "expand": (x.shape[-1], inner),
      "filter": (3, 3, inner, outer),
      "shrink": (outer, self.width),
      "skip": (x.shape[-1], self.width),
    }
    if self.form == "deploy":
      own = _weights(self, (3, 3, x.shape[-1], self.width), self.param_dtype)
    else:
      own = _fold_branches(
        {
          name: Weights(shape, self.param_dtype, name=name)()
          for name, shape in shapes.items()
        }
      )
    kernel, bias = (own[name].astype(self.dtype) for name in ("kernel", "bias"))
    y = convolution.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + bias[None, None, None]


class Weights(nn.Module):
  """The kernel and the bias of a convolution, which somebody else applies."""

  shape: tuple[int, ...]
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    return _weights(self, self.shape, self.param_dtype)


def fold(params: Mapping[str, Any]) -> dict[str, Any]:
  """Turns parameters of the form "train" into those of the form "deploy".

  The networks are the same function, borders included, but for the rounding.

  Args:
    params: of a `Span`, or a part of them; it may be jitted and differentiated.

  Raises:
    ValueError: if there is nothing to fold, as in the form "deploy".
  """
  folded, count = _fold(params)
  if not count:
    raise ValueError(
      f"params has {sorted(params)} and no convolution in branches "
      f"{sorted(_BRANCHES)}; it is of the form 'deploy' already, or not SPAN's"
    )
  return folded


def _fold(params: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
  """Returns what `fold` does, and how many convolutions it folded."""
  if set(params) == _BRANCHES:
    return _fold_branches(params), 1
  folded, count = {}, 0
  for name, value in params.items():
    inner = 0
    if isinstance(value, Mapping):
      value, inner = _fold(value)
    folded[name] = value
    count += inner
  return folded, count


def _fold_branches(branches: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Multiplies the branches of a convolution into one kernel and bias."""
  # Products of a TPU would otherwise round to bfloat16.
  einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
  expand, middle, shrink, skip = (
    branches[name] for name in ("expand", "filter", "shrink", "skip")
  )
  # From the right: m is inside the first two, n inside the last two.
  rows = einsum("yxmn,no->yxmo", middle["kernel"], shrink["kernel"])
  kernel = einsum("im,yxmo->yxio", expand["kernel"], rows)
  kernel = kernel.at[1, 1].add(skip["kernel"])
  bias = einsum("m,yxmo->o", expand["bias"], rows)
  bias += einsum("n,no->o", middle["bias"], shrink["kernel"])
  return {"kernel": kernel, "bias": bias + shrink["bias"] + skip["bias"]}


def _weights(
  module: nn.Module, shape: tuple[int, ...], dtype: layers.Dtype
) -> dict[str, jax.Array]:
  """Declares a kernel and a bias with PyTorch's initial values."""
  init = uniform(math.prod(shape[:-1]))
  return {
    "kernel": module.param("kernel", init, shape, dtype),
    "bias": module.param("bias", init, shape[-1:], dtype),
  }


def _check_fields(model: Span) -> None:
  """Raises ValueError for fields that do not fit."""
  for field in ("channels", "scale", "blocks", "gain"):
    if getattr(model, field) < 1:
      raise ValueError(
        f"{field} is {getattr(model, field)}; it must be 1 or more"
      )
  if model.form not in FORMS:
    raise ValueError(f"form is {model.form!r}; it must be one of {FORMS}")


KIND = "restoration"
# SPAN of the paper and its wider sibling, and the networks of the NTIRE 2024
# challenge, of 28 channels and of 26.
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  f"span_c{channels}_x{scale}": (Span, {"channels": channels, "scale": scale})
  for channels, scales in {
    48: (2, 3, 4),
    52: (2, 3, 4),
    28: (4,),
    26: (4,),
  }.items()
  for scale in scales
}
