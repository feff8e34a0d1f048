"""Dense layers of images to and from attention heads, as flat products.

Their parameters are those of `layers.DenseGeneral`. But what is multiplied has
the channels of all heads as one axis: a TPU pads the last axes of an array to
8 x 128, so that [..., heads, dim] would take up to five times as much, and XLA
moves between such arrays and flat ones by copies that cost more than the
attention of windows.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models import dense, layers


class ToHeads(nn.Module):
  """Several projections of images to heads, from one parameter.

  Attributes:
    parts: how many projections, as 3 for queries, keys and values.
    heads: number of heads.
    dim: channels of a head.
    kernel_init: initializer of the kernel, [channels, parts * heads * dim].
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters "kernel" [channels, parts, heads, dim]
      and "bias" [parts, heads, dim].
  """

  parts: int
  heads: int
  dim: int
  kernel_init: layers.Initializer = nn.initializers.lecun_normal()
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    """Maps [batch, height, width, channels] to arrays [..., heads, dim]."""
    shape = (self.parts, self.heads, self.dim)

    def init(key, shape, dtype):
      flat = (shape[0], math.prod(shape[1:]))
      return self.kernel_init(key, flat, dtype).reshape(shape)

    kernel = self.param("kernel", init, (x.shape[-1], *shape), self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    kernels = (part.reshape(x.shape[-1], -1) for part in _split(kernel, 1))
    biases = (part.reshape(-1) for part in _split(bias))
    outs = (
      dense.add_bias(dense.image_matmul(x, kernel), bias)
      for kernel, bias in zip(kernels, biases, strict=True)
    )
    return [out.reshape(*x.shape[:-1], *shape[1:]) for out in outs]


def _split(x: jax.Array, axis: int = 0) -> list[jax.Array]:
  # Its gradient is one concatenation, that of indexing a sum of padded arrays.
  return lax.split(x, (1,) * x.shape[axis], axis)


def from_heads(
  x: jax.Array,
  kernel: jax.Array,
  dimension_numbers: lax.DotDimensionNumbers,
  precision: lax.PrecisionLike = None,
) -> jax.Array:
  """Is `dense.dot_general` of images [..., heads, dim] to channels."""
  axes = ((x.ndim - 2, x.ndim - 1), (0, 1))
  if tuple(map(tuple, dimension_numbers[0])) != axes:
    raise ValueError(
      f"dimension_numbers={dimension_numbers} must contract heads and dim"
    )
  inputs = math.prod(kernel.shape[:2])
  return dense.image_matmul(
    x.reshape(*x.shape[:-2], inputs), kernel.reshape(inputs, -1), precision
  )
