"""What probes are made of: heads, attention with an open map, dense layers.

Kernels and biases are flat, one axis for all heads, as those of the published
probes are: LARS scales each array of two axes and more by its own norm, and
biases not at all.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import lina_layers, normalization, open_attention
from models.layers import Dtype

# PyTorch's truncated normal is cut at 2, so many deviations away that nothing
# is cut.
TOKEN_INIT = nn.initializers.normal(0.02)

Grid = tuple[int, int] | None


class Pooling(nn.Module):
  """Base of what makes one vector of an image's tokens.

  Called with tokens [batch, tokens, width], the rows and columns that they are
  on, None where a class token is the first of them, and whether it trains.

  Attributes:
    dtype: dtype of the computation; softmax and statistics are float32.
    param_dtype: dtype of the parameters.
    implementation: of attention, see `attention.kernels.dispatch`.
  """

  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32
  implementation: str = "auto"

  @property
  def dtypes(self) -> dict[str, Dtype]:
    """Both, as the fields that layers take."""
    return {"dtype": self.dtype, "param_dtype": self.param_dtype}

  def dense(self, x, features, name, *, use_bias=True) -> jax.Array:
    """Applies a dense layer with PyTorch's initial values."""
    layer = lina_layers.dense(
      features, x.shape[-1], use_bias=use_bias, name=name, **self.dtypes
    )
    return layer(x)

  def norm(self, x, name, epsilon=1e-5) -> jax.Array:
    """Applies a layer norm."""
    layer = normalization.LayerNorm(epsilon=epsilon, name=name, **self.dtypes)
    return layer(x)

  def token(self, name, width, init=TOKEN_INIT, *, count=1) -> jax.Array:
    """Makes learned tokens [count, width]."""
    token = self.param(name, init, (count, width), self.param_dtype)
    return token.astype(self.dtype)

  def attend(self, q, k, v, scale=None) -> jax.Array:
    """Attention with its map as the tap "attention_weights".

    Args:
      q: queries [batch or 1, queries, heads, dim].
      k: keys [batch, tokens, key heads, dim].
      v: values [batch, tokens, key heads, value dim].
      scale: of scores; dim ** -0.5 if None.

    Returns:
      [batch, queries, heads, value dim].
    """
    q = jnp.broadcast_to(q, (k.shape[0], *q.shape[1:]))
    return open_attention.dot_product(
      self, q, k, v, implementation=self.implementation, scale=scale
    )


def to_heads(x: jax.Array, heads: int) -> jax.Array:
  """Maps [batch, tokens, width] to [batch, tokens, heads, width / heads].

  Raises:
    ValueError: if the heads do not divide the width.
  """
  if heads < 1 or x.shape[-1] % heads:
    raise ValueError(
      f"heads is {heads}; it must divide the width of tokens, {x.shape[-1]}"
    )
  return x.reshape(*x.shape[:-1], heads, -1)


def from_heads(x: jax.Array) -> jax.Array:
  """Maps [batch, tokens, heads, dim] to [batch, tokens, heads * dim]."""
  return x.reshape(*x.shape[:-2], -1)


def batch_norm(epsilon: float, train: bool, **fields) -> nn.Module:
  """A batch norm with PyTorch's momentum, 0.1 there and 0.9 here.

  Its running variance is the biased one, where PyTorch's is n / (n - 1) times
  as large.
  """
  return normalization.BatchNorm(
    momentum=0.9, epsilon=epsilon, use_running_average=not train, **fields
  )


plain_batch_norm = functools.partial(
  batch_norm, 1e-6, use_scale=False, use_bias=False, dtype=jnp.float32
)
