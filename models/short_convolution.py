"""A convolution over a few tokens, each channel with its own filter.

In front of a recurrent mixer it lets a token be compared with those right
before it, as in DeltaNet (arXiv 2406.06484) and Mamba (arXiv 2312.00752).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, registry

ACTIVATIONS = {"none": lambda x: x, "silu": nn.silu}
# What goes on to the next call: `inputs` [batch, size - 1, ...] of the last
# tokens, and their `segments` [batch, size - 1].
Recent = dict[str, jax.Array]


class ShortConvolution(nn.Module):
  """y_i = activation(sum_(d < size) kernel_(size - 1 - d) x_(i + a - d)).

  a is 0, or size // 2 if it is not causal.

  Attributes:
    size: tokens that one sees, its own included; at least 2.
    activation: a key of ACTIVATIONS.
    dtype: dtype of the result; sums are float32.
    param_dtype: dtype of the filters.
    causal: whether its own is the last of the tokens that one sees; otherwise
      `size // 2` come after it.
  """

  size: int
  activation: str = "none"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32
  causal: bool = True

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: jax.Array | None = None,
    kept: jax.Array | None = None,
    recent: Recent | None = None,
  ) -> tuple[jax.Array, Recent | None]:
    """Convolves [batch, length, ...] over the length.

    Args:
      x: what each token has.
      segments: integers [batch, length]; tokens see those of their own. If
        None, all are of the segment of the token before.
      kept: booleans [batch, length], False for padding, which nobody sees.
      recent: what `init_recent` or an earlier call gave; None for a row that is
        there as a whole.

    Returns:
      An array like `x`, and what the next call needs, None if `recent` is.

    Raises:
      ValueError: if a field does not fit.
    """
    if self.activation not in ACTIVATIONS:
      raise registry.unknown("activation", self.activation, ACTIVATIONS)
    check_size(self.size)
    kernel = self.param(
      "kernel", _kernel_init, (self.size, *x.shape[2:]), self.param_dtype
    )
    if kept is not None:
      x = jnp.where(kept.reshape(*kept.shape, *(1,) * (x.ndim - 2)), x, 0)
    ahead = 0 if self.causal else self.size // 2
    if ahead and recent is not None:
      raise ValueError(
        "recent is given, but causal is False: a token sees those that follow"
      )
    before = recent
    if before is None:
      before = init_recent(x.shape[0], self.size, x.shape[2:], x.dtype)
    elif segments is None:
      segments = jnp.broadcast_to(before["segments"][:, -1:], x.shape[:2])
    inputs = jnp.concatenate([before["inputs"].astype(x.dtype), x], axis=1)
    places = None
    if segments is not None:
      places = jnp.concatenate([before["segments"], segments], axis=1)
    if recent is not None:
      length = x.shape[1]
      recent = {"inputs": inputs[:, length:], "segments": places[:, length:]}
    if ahead:
      # Of the zeros before the row as many come after it.
      inputs = jnp.roll(inputs, -ahead, axis=1)
      places = None if places is None else jnp.roll(places, -ahead, axis=1)
    y = ACTIVATIONS[self.activation](convolve(inputs, kernel, places, ahead))
    return y.astype(self.dtype), recent


def init_recent(
  batch: int, size: int, channels: tuple[int, ...], dtype: layers.Dtype
) -> Recent:
  """Returns what comes before the first of all tokens: nothing."""
  return {
    "inputs": jnp.zeros((batch, size - 1, *channels), dtype),
    "segments": jnp.zeros((batch, size - 1), jnp.int32),
  }


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  segments: jax.Array | None = None,
  ahead: int = 0,
) -> jax.Array:
  """Sums products with a filter, where it is whole.

  Args:
    x: [batch, length, ...].
    kernel: [size, ...]; behind the one for the token itself are `ahead`.
    segments: integers [batch, length]; tokens of others count as zeros.
    ahead: how many tokens after it a token sees.

  Returns:
    float32 [batch, length - size + 1, ...], for the tokens from
    `size - 1 - ahead` on.
  """
  size = kernel.shape[0]
  length = x.shape[1] - size + 1
  out = jnp.zeros((), jnp.float32)
  own = size - 1 - ahead
  for i in range(size):
    part = x[:, i : i + length].astype(jnp.float32)
    if segments is not None and i != own:
      seen = segments[:, i : i + length] == segments[:, own : own + length]
      part = jnp.where(seen.reshape(*seen.shape, *(1,) * (x.ndim - 2)), part, 0)
    out = out + part * kernel[i][None, None].astype(jnp.float32)
  return out


def check_size(size: int) -> None:
  """Raises ValueError unless a convolution can have this size."""
  if size < 2:
    raise ValueError(
      f"size of a short convolution is {size}; it must be at least 2, a token "
      "and the one before it"
    )


def _kernel_init(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
  """Uniform up to size ** -0.5, as PyTorch draws the filters of a channel."""
  bound = 1 / math.sqrt(shape[0])
  return jax.random.uniform(key, shape, dtype, -bound, bound)
