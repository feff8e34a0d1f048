"""What networks that restore images share: ends, beginnings, checks."""

import math

import jax
import jax.numpy as jnp

from models import layers, taps
from models.lina_layers import uniform

# Of DIV2K's photographs, as EDSR's code and those after it subtract it.
RGB_MEAN = (0.4488, 0.4371, 0.4040)


class Restorer(taps.Tapped):
  """A model of kind "restoration": images to better ones, maybe larger.

  Attributes:
    scale: by how much height and width grow; 1 for the same size.
    remat: whether the backward pass computes each block again instead of
      keeping its activations.
    dtype: dtype of the computation; the result is float32.
    param_dtype: dtype of the parameters.
  """

  scale: int = 1
  remat: bool = False
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @property
  def size_multiple(self) -> int:
    """The number of which height and width of images must be multiples."""
    return 1

  @property
  def dtypes(self) -> dict[str, layers.Dtype]:
    """Both, as the fields that layers take."""
    return {"dtype": self.dtype, "param_dtype": self.param_dtype}

  def _check_images(self, x: jax.Array) -> None:
    """Raises ValueError unless `x` is what the model takes."""
    layers.check_images(x)
    if x.shape[-1] != 3:
      raise ValueError(
        f"x has shape {x.shape}; the model restores RGB, so it needs 3 channels"
      )
    step = self.size_multiple
    height, width = x.shape[1:3]
    if height % step or width % step:
      raise ValueError(
        f"x is {height} x {width}; height and width must be multiples of "
        f"{step}: pad it by reflection at the bottom and right and crop the "
        "result, as the task does"
      )


def conv(width: int, channels: int, side: int = 3, **options) -> layers.Conv:
  """Returns a convolution of `channels` as PyTorch has it when it is new.

  It is padded with zeros by side // 2 on each side; kernel and bias are uniform
  within one over the root of its inputs.
  """
  init = uniform(side**2 * channels)
  defaults = {
    "padding": side // 2,
    "kernel_init": init,
    "bias_init": init,
  }
  return layers.Conv(width, (side, side), **{**defaults, **options})


def dense(width: int, channels: int, **options) -> layers.Dense:
  """Returns a convolution of one pixel, initialised like `conv`."""
  init = uniform(channels)
  return layers.Dense(
    width, **{"kernel_init": init, "bias_init": init, **options}
  )


def pixel_shuffle(x: jax.Array, scale: int) -> jax.Array:
  """Turns groups of scale^2 channels into pixels (1609.05158).

  The channels of an output channel follow one another, as PyTorch has them.

  Args:
    x: [batch, height, width, channels * scale^2].
    scale: how many pixels each becomes along a side.

  Returns:
    [batch, height * scale, width * scale, channels].

  Raises:
    ValueError: if scale^2 does not divide the channels.
  """
  batch, height, width, channels = x.shape
  if scale < 1 or channels % scale**2:
    raise ValueError(
      f"scale is {scale} and x has {channels} channels, which must be a "
      "multiple of its square"
    )
  x = x.reshape(batch, height, width, -1, scale, scale)
  x = x.transpose(0, 1, 4, 2, 5, 3)  # [B, H, r, W, r, C]
  return x.reshape(batch, height * scale, width * scale, -1)


def pixel_unshuffle(x: jax.Array, scale: int) -> jax.Array:
  """The inverse of `pixel_shuffle`.

  Args:
    x: [batch, height, width, channels].
    scale: how many pixels along a side become one.

  Returns:
    [batch, height / scale, width / scale, channels * scale^2].

  Raises:
    ValueError: if the scale does not divide height and width.
  """
  batch, height, width, channels = x.shape
  if scale < 1 or height % scale or width % scale:
    raise ValueError(
      f"scale is {scale}, which must divide the {height} x {width} of x"
    )
  x = x.reshape(batch, height // scale, scale, width // scale, scale, channels)
  x = x.transpose(0, 1, 3, 5, 2, 4)  # [B, H, W, C, r, r]
  return x.reshape(*x.shape[:3], math.prod(x.shape[3:]))
