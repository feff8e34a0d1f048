"""Normalisations of a transformer's tokens, by name."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, normalization, registry, taps


class DynamicTanh(nn.Module):
  """scale * tanh(alpha x) + bias, DyT of arXiv 2503.10622, in float32.

  It has no statistics, so that no value shrinks another.

  Attributes:
    alpha: what the one number "alpha/scale" begins with.
    dtype: dtype of the result.
    param_dtype: dtype of the parameters.
  """

  alpha: float = 0.5
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps the last axis of an array."""
    alpha = nn.initializers.constant(self.alpha)
    x = normalization.Scale((), alpha, self.param_dtype, name="alpha")(
      x.astype(jnp.float32)
    )
    scale, bias = (
      self.param(name, init, x.shape[-1:], self.param_dtype)
      .astype(jnp.float32)
      .reshape((1,) * (x.ndim - 1) + (-1,))
      for name, init in (
        ("scale", nn.initializers.ones),
        ("bias", nn.initializers.zeros),
      )
    )
    return (scale * jnp.tanh(x) + bias).astype(self.dtype)


class Gated(nn.Module):
  """y * sigmoid(up(silu(down(y)))) for y = norm(x).

  GatedNorm of arXiv 2601.22966. The gate reads what is normalised, so that it
  is the same for all c x, c > 0. The sigmoid and the product are float32. What
  the weights begin with is ours.

  Attributes:
    norm: makes the normalisation, given dtype and name.
    rank: channels between the two dense layers, which have no bias.
    kernel_init: initializer of both.
    dtype: dtype of the dense layers and of the result.
    param_dtype: dtype of the parameters.
  """

  norm: Callable[..., nn.Module]
  rank: int = 16
  kernel_init: layers.Initializer = nn.initializers.normal(0.02)
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises the last axis of an array."""
    y = self.norm(dtype=jnp.float32, name="norm")(x)
    dense = functools.partial(
      layers.Dense,
      use_bias=False,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    low = nn.silu(dense(self.rank, name="down")(y))
    logits = dense(x.shape[-1], name="up")(low).astype(jnp.float32)
    gate = taps.tap(self, "norm_gate", nn.sigmoid(logits))
    return (gate * y).astype(self.dtype)


# Name: (kind, whether gated); see `of_tokens`.
NORMS = {
  "rms_norm": ("rms_norm", False),
  "layer_norm": ("layer_norm", False),
  "pre_affine_rms_norm": ("pre_affine_rms_norm", False),
  "gated_rms_norm": ("rms_norm", True),
  "dynamic_tanh": ("dynamic_tanh", False),
  "gated_dynamic_tanh": ("dynamic_tanh", True),
}
# What stands outside of blocks, and normalises heads, beside norms of blocks
# that have what is for blocks alone.
PLAIN = {
  "pre_affine_rms_norm": "rms_norm",
  "gated_rms_norm": "rms_norm",
  "gated_dynamic_tanh": "dynamic_tanh",
}


def of_tokens(
  name: str,
  *,
  epsilon: float = 1e-6,
  use_bias: bool = True,
  offset: bool = False,
  alpha: float = 0.5,
  gate_rank: int = 16,
  gate_init: layers.Initializer = Gated.kernel_init,
  **dtypes: Any,
) -> Callable[..., nn.Module]:
  """Returns what makes the normalisations of a transformer, given a name.

  Args:
    name: a key of NORMS.
    epsilon: added to the mean square or the variance.
    use_bias: whether a layer norm has a bias.
    offset: see `normalization.RMSNorm`.
    alpha: see `DynamicTanh`.
    gate_rank: of `Gated`.
    gate_init: of its dense layers.
    **dtypes: `dtype` and `param_dtype`.

  Raises:
    ValueError: if there is no such normalisation, it has no offset, or the rank
      is not positive.
  """
  if name not in NORMS:
    raise registry.unknown("norm", name, NORMS)
  kind, gated = NORMS[name]
  if offset and "rms_norm" not in kind:
    raise ValueError(
      f"norm_offset is True, and norm={name!r} has no offset; those of RMS "
      "norms have: " + ", ".join(n for n in NORMS if "rms_norm" in n)
    )
  make = {
    "rms_norm": functools.partial(normalization.RMSNorm, epsilon, offset),
    "pre_affine_rms_norm": functools.partial(
      normalization.RMSNorm, epsilon, offset, True
    ),
    "layer_norm": functools.partial(
      normalization.LayerNorm, epsilon=epsilon, use_bias=use_bias
    ),
    "dynamic_tanh": functools.partial(DynamicTanh, alpha),
  }[kind]
  make = functools.partial(make, **dtypes)
  if not gated:
    return make
  if gate_rank < 1:
    raise ValueError(f"norm_gate_rank is {gate_rank}; it must be at least 1")
  return functools.partial(Gated, make, gate_rank, gate_init, **dtypes)
