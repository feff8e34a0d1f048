"""How far attention looks: the mean distance of what a token attends to.

"Remedying Target-Domain Astigmatism for Cross-Domain Few-Shot Object Detection"
(arXiv 2603.18541) finds it larger where a detector meets images of another kind
than it was trained on. Of windows it is the distance within the window, so that
only layers of one kind and size compare.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from interpret.statistics import MAPS
from models import taps


def grid_positions(
  sides: Sequence[int], spacing: float | Sequence[float] = 1.0
) -> np.ndarray:
  """Places of the tokens of a grid in row-major order, float32 [tokens, axes].

  Args:
    sides: of the grid.
    spacing: distance of neighbours, on each axis or on all: 1 for distances in
      tokens, the side of a patch for pixels; the distance of two tokens of a
      window that are neighbours in it, as in MaxViT's grids.
  """
  spacing = np.broadcast_to(np.asarray(spacing, np.float32), len(sides))
  axes = [np.arange(n) * step for n, step in zip(sides, spacing, strict=True)]
  places = np.meshgrid(*axes, indexing="ij")
  return np.stack(places, axis=-1).reshape(-1, len(sides)).astype(np.float32)


def attention_distance(
  weights: jax.Array,
  positions: jax.Array | np.ndarray,
  key_positions: jax.Array | np.ndarray | None = None,
  counted: jax.Array | None = None,
) -> jax.Array:
  """Returns sum_ij A_ij |p_i - p_j| / N of each head, over N queries.

  Keys that a mask hides have no weight; queries that are padding are left out
  by `counted`. Weights of keys that stand nowhere, as a class token's, are to
  be cut off before; what is left counts by its share.

  Args:
    weights: [batch, ..., heads, queries, keys], not negative.
    positions: [queries, axes], in the unit that the result shall have.
    key_positions: [keys, axes]; those of the queries if None.
    counted: bool, which queries count, such that it broadcasts to
      [batch, ..., heads, queries]; all if None.

  Returns:
    float32 [heads], averaged over all axes before. NaN if no query counts.

  Raises:
    ValueError: if the positions do not fit the weights.
  """
  keys = positions if key_positions is None else key_positions
  if weights.ndim < 3 or weights.shape[-2:] != (len(positions), len(keys)):
    raise ValueError(
      f"weights have shape {weights.shape}; with {len(positions)} positions of "
      f"queries and {len(keys)} of keys they must be [batch, ..., heads, "
      f"{len(positions)}, {len(keys)}]."
    )
  weights = weights.astype(jnp.float32)
  between = jnp.asarray(positions)[:, None] - jnp.asarray(keys)[None]
  distance = jnp.sqrt(jnp.sum(jnp.square(between), axis=-1))
  total = weights.sum(-1)
  far = jnp.einsum("...qk,qk->...q", weights, distance)
  far = far / jnp.where(total > 0, total, 1.0)
  there = total > 0
  if counted is not None:
    there = there & counted
  axes = (*range(far.ndim - 2), far.ndim - 1)
  return jnp.where(there, far, 0.0).sum(axes) / there.sum(axes)


def of_model(
  model: nn.Module,
  variables: Mapping[str, Any],
  images: jax.Array,
  spacing: float | Mapping[str, float] = 1.0,
) -> dict[str, jax.Array]:
  """The attention distance of each layer of a model of images.

  Maps are [batch, heads, tokens, tokens] of the whole image, or
  [batch, windows, heads, tokens, tokens]; tokens form a square, maybe with one
  before it that stands nowhere, a class token.

  Args:
    model: whose attention maps are the taps MAPS.
    variables: its own.
    images: that it is called with.
    spacing: see `grid_positions`, of all layers or by the names of their maps.

  Returns:
    float32 [heads] of each layer, by the names of the maps, the first layer
    first.

  Raises:
    ValueError: if the model has no such taps, or their tokens are no square.
  """
  _, maps = taps.read(model, variables, images, names=[MAPS])
  found = collections.OrderedDict()
  for name, weights in maps.items():
    tokens = weights.shape[-1]
    side = int(tokens**0.5)
    before = tokens - side**2
    if before > 1 or weights.shape[-2] != tokens:
      raise ValueError(
        f"{name} has shape {weights.shape}; its tokens must be a square, maybe "
        "with one before."
      )
    step = spacing[name] if isinstance(spacing, Mapping) else spacing
    found[name] = attention_distance(
      weights[..., before:, before:], grid_positions((side, side), step)
    )
  return found
