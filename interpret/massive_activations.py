"""Massive activations: the few values that are far larger than all others.

"Massive Activations in Large Language Models" (arXiv 2402.17762): in some
layers a handful of channels of a few tokens, often the first, are thousands of
times as large as the rest, whatever the text; attention sinks on these tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Largest(NamedTuple):
  """The largest values of each row of a hidden state.

  Attributes:
    values: float32 [batch, count], with their signs, the largest |x| first.
    tokens: int32 [batch, count], their places in the row.
    channels: int32 [batch, count].
    ratios: float32 [batch, count], |x| by the row's median |x|.
  """

  values: jax.Array
  tokens: jax.Array
  channels: jax.Array
  ratios: jax.Array


def massive(
  state: jax.Array,
  positions: jax.Array | None = None,
  size: float = 100.0,
  ratio: float = 1000.0,
) -> jax.Array:
  """Returns which values are massive, bool [batch, length, width].

  Args:
    state: [batch, length, width].
    positions: integers [batch, length], -1 for padding; None for none.
    size: that |x| has to exceed, the paper's.
    ratio: of |x| by the median |x| of the row's tokens and channels, that it
      has to reach; about as much in the paper.
  """
  magnitude, median = _magnitudes(state, positions)
  return (magnitude > size) & (magnitude >= ratio * median[:, None, None])


def largest(
  state: jax.Array, positions: jax.Array | None = None, count: int = 3
) -> Largest:
  """Finds the largest values of each row.

  Args:
    state: [batch, length, width].
    positions: integers [batch, length], -1 for padding; None for none.
    count: how many.

  Raises:
    ValueError: if the state has fewer values.
  """
  batch, length, width = state.shape
  if not 1 <= count <= length * width:
    raise ValueError(
      f"count is {count}; it must be from 1 to {length * width}, the values of "
      "a row"
    )
  magnitude, median = _magnitudes(state, positions)
  found, places = jax.lax.top_k(magnitude.reshape(batch, -1), count)
  flat = state.astype(jnp.float32).reshape(batch, -1)
  return Largest(
    jnp.take_along_axis(flat, places, axis=1),
    places // width,
    places % width,
    found / median[:, None],
  )


def _magnitudes(state, positions) -> tuple[jax.Array, jax.Array]:
  """|x| with 0 for padding, and the median of each row without."""
  magnitude = jnp.abs(state.astype(jnp.float32))
  if positions is None:
    return magnitude, jnp.median(magnitude, axis=(1, 2))
  if positions.shape != state.shape[:2]:
    raise ValueError(
      f"positions has shape {positions.shape}; it must be {state.shape[:2]}, "
      "batch and length of the state"
    )
  real = (jnp.asarray(positions) >= 0)[..., None]
  median = jnp.nanmedian(jnp.where(real, magnitude, jnp.nan), axis=(1, 2))
  return jnp.where(real, magnitude, 0.0), median
