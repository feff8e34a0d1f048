"""What inserts ask of the layer that they stand at."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Flax's, of which the fields say what they sum over and what they give.
LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv)


def shape_of_output(module: nn.Module, y: jax.Array) -> tuple[int, ...]:
  """The features of a layer, its last axes: [heads, dim] of one to heads."""
  if not isinstance(module, LAYERS):
    return y.shape[-1:]
  features = module.features
  return (features,) if isinstance(features, int) else tuple(features)


def shape_of_input(module: nn.Module, x: jax.Array) -> tuple[int, ...]:
  """What a layer contracts, the last axes of its input."""
  axis = getattr(module, "axis", -1)
  count = 1 if isinstance(axis, int) else len(axis)
  return x.shape[x.ndim - count :]


def per_feature(values: jax.Array, like: jax.Array) -> jax.Array:
  """Values of the last axes with the number of axes of an array."""
  ones = (1,) * (like.ndim - values.ndim)
  return values.reshape(*ones, *values.shape)


def param_dtype(module: nn.Module) -> Any:
  """That of a layer's parameters."""
  return getattr(module, "param_dtype", jnp.float32)


def check_array(y: Any, name: str, place: str) -> None:
  """Raises ValueError unless what comes out of a layer is one array."""
  if not isinstance(y, jax.Array):
    raise ValueError(
      f"{name} is put at {place}, which gives a {type(y).__name__}; it needs a "
      "layer that gives one array"
    )
