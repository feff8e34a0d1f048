"""The selective scan of images, a mixer of places that is linear in them."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from models import layers, normalization

# As MambaIR's code initialises the sizes of steps.
_STEPS = (1e-3, 1e-1)
_LEAST_STEP = 1e-4
_WAYS = 4


class ImageScan(nn.Module):
  """SS2D: four selective scans of an image, summed, normalised and gated.

  MambaIR (arXiv 2402.15648, section 3.2 and its code):

      x, z = in_proj(u);  x = silu(conv3x3(x))
      [low, b, c] = x_proj(x);  dt = softplus(dt_proj(low) + dt_bias)
      out_proj(norm(sum of ways of scan(x, dt, -exp(a_log), b, c, d)) * silu(z))

  where each of the four ways has its own x_proj, dt_proj, dt_bias, a_log and d.
  All from the projections to the norm is float32.

  Attributes:
    expansion: channels that are scanned over those of the image.
    states: numbers that a channel remembers.
    chunk_size: places that are scanned at a time.
    kernel_init: initializer of the projections and the filters.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  expansion: int = 2
  states: int = 16
  chunk_size: int = 64
  kernel_init: layers.Initializer = nn.initializers.lecun_normal()
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, u: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to an array like it."""
    options = {
      "use_bias": False,
      "kernel_init": self.kernel_init,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
    }
    width = self.expansion * u.shape[-1]
    x, gate = jnp.split(
      layers.Dense(2 * width, name="in_proj", **options)(u), 2, axis=-1
    )
    filters = {**options, "use_bias": True}
    x = nn.silu(layers.DepthwiseConv(name="conv", **filters)(x))
    y = self._scan(x, math.ceil(u.shape[-1] / 16), options)
    y = normalization.LayerNorm(
      epsilon=1e-5, dtype=self.dtype, param_dtype=self.param_dtype, name="norm"
    )(y)
    return layers.Dense(u.shape[-1], name="out_proj", **options)(
      y * nn.silu(gate)
    )

  def _scan(self, x: jax.Array, rank: int, options: dict) -> jax.Array:
    """Returns the sum of four scans, float32.

    Args:
      x: [batch, height, width, channels].
      rank: numbers that the steps of all channels are made of.
      options: of the projections.
    """
    height, width, channels = x.shape[1:]
    shape = (_WAYS, channels)
    vectors = [
      self.param(name, init, of, self.param_dtype).astype(jnp.float32)
      for name, init, of in (
        ("dt_kernel", _uniform(rank**-0.5), (_WAYS, rank, channels)),
        ("dt_bias", _inverse_softplus_of_steps, shape),
        ("a_log", _log_of_counts, (*shape, self.states)),
        ("d", nn.initializers.ones, shape),
      )
    ]
    dt_kernel, dt_bias, a_log, d = vectors
    # [batch, height, width, 4, rank + 2 states]
    parts = layers.DenseGeneral(
      (_WAYS, rank + 2 * self.states), name="x_proj", **options
    )(x)
    # [batch, places, 4, ...] from here on.
    parts = attention.four_ways(parts).astype(jnp.float32)
    low, b, c = jnp.split(parts, (rank, rank + self.states), axis=-1)
    dt = jnp.einsum("blkr,krd->blkd", low, dt_kernel) + dt_bias[None, None]
    ways = jnp.broadcast_to(
      x[..., None, :], (*x.shape[:3], _WAYS, channels)
    ).astype(jnp.float32)
    y = attention.selective_scan(
      attention.four_ways(ways),
      nn.softplus(dt),
      -jnp.exp(a_log),
      b,
      c,
      d,
      chunk_size=self.chunk_size,
    )
    return attention.from_four_ways(y, height, width)


def _uniform(bound: float) -> layers.Initializer:
  def init(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def _inverse_softplus_of_steps(key, shape, dtype):
  """Biases whose softplus is uniform in its logarithm over _STEPS."""
  least, most = map(math.log, _STEPS)
  steps = jnp.exp(jax.random.uniform(key, shape, jnp.float32, least, most))
  steps = jnp.maximum(steps, _LEAST_STEP)
  return (steps + jnp.log(-jnp.expm1(-steps))).astype(dtype)


def _log_of_counts(key, shape, dtype):
  """log(1), log(2), ... along the last axis."""
  del key
  counts = jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)
  return jnp.broadcast_to(
    jnp.log(counts).reshape((1,) * (len(shape) - 1) + (-1,)), shape
  ).astype(dtype)
