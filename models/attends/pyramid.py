"""Attention that sees far keys as means: PSA (arXiv 2512.04025)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention import permutations, pyramid_importance, pyramid_levels
from attention import pyramid as pyramids
from models import registry, taps
from models.attends import scaling
from models.attends.layout import Layout

CHOICES = ("count", "mass")
IMPORTANCE = ("scores", "antidiagonal", "random")
ORDERS = ("rows", "gilbert")


def pyramid(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  block_q: int = 128,
  block_k: int = 128,
  bounds: Sequence[float] = (0.10, 0.15, 0.15, 0.35),
  chosen_by: str = "count",
  caps: Sequence[float] | None = None,
  pools: Sequence[int] = pyramids.POOLS,
  window: Sequence[int] | None = None,
  order: str = "rows",
  importance: str = "scores",
  stride: int = 16,
  seed: int | None = None,
  scale_by: str = "constant",
) -> jax.Array:
  """Pyramid sparse attention; the levels of its blocks are the tap "levels".

  Of self-attention alone. Keys of the text are at level 1.

  Args:
    module: see `models.attends`, and so for the arrays.
    q: queries.
    k: keys.
    v: values.
    layout: where they stand.
    block_q: queries in a block.
    block_k: keys in a block.
    bounds: see `attention.pyramid_levels`; the default is that of the released
      class for any model, 15 percent of the products.
    chosen_by: "count", `levels_by_count`, or "mass", `levels_by_mass`.
    caps: thresholds of `similarity_caps`; none if None.
    pools: the levels that there are.
    window: sides of windows of the grid, of whose tokens blocks are made, as
      (2, 8, 8); in the order below if None.
    order: "rows", row-major, or "gilbert", `permutations.gilbert`, which the
      paper has for most models. The text comes after the grid.
    importance: "scores", `block_importance`; "antidiagonal", the estimate that
      the paper has for causal models, `antidiagonal_importance`; or "random",
      for comparison.
    stride: tokens in a group of the antidiagonal estimate; divides both blocks.
    seed: of the positions that scores are made of, a quarter of each block, and
      of random importance; None for scores of all positions.
    scale_by: "constant" or "entropy", see `models.attends.scaling`; a mean of g
      keys is g of those that a query sees.

  Raises:
    ValueError: for options that do not fit, or where queries and keys are not
      the tokens of the layout.
  """
  for name, value, known in (
    ("chosen_by", chosen_by, CHOICES),
    ("importance", importance, IMPORTANCE),
    ("order", order, ORDERS),
  ):
    if value not in known:
      raise registry.unknown(f"{name} of attend='pyramid'", value, known)
  scaling.check(scale_by)
  tokens = layout.places + layout.text
  if (q.shape[1], k.shape[1]) != (tokens, tokens):
    raise ValueError(
      f"attend is 'pyramid', and there are {q.shape[1]} queries and "
      f"{k.shape[1]} keys; it is for self-attention, of {tokens} tokens here"
    )
  places = _order(layout, window, order)
  if places is not None:
    q, k, v = (x[:, places] for x in (q, k, v))
  blocks = -(-tokens // block_k)
  look = _importance(q, k, block_q, block_k, importance, seed, stride)
  choose = {
    "count": pyramid_levels.levels_by_count,
    "mass": pyramid_levels.levels_by_mass,
  }[chosen_by]
  levels = choose(look, tuple(bounds), pools=tuple(pools))
  most = None
  if chosen_by == "count":
    most = pyramid_levels.most_tiles(blocks, tuple(bounds), tuple(pools))
  if caps is not None:
    allowed = pyramid_importance.similarity_caps(k, block_k, caps, pools=pools)
    levels, most = jnp.minimum(levels, allowed[:, :, None]), None
  levels = pyramid_levels.with_text(levels, layout.text, block_k)
  levels = taps.tap(module, "levels", levels)
  if most is not None:
    most += -(-layout.text // block_k) * pools[-1]
  out = pyramids.pyramid_attention(
    q,
    k,
    v,
    levels,
    block_q=block_q,
    block_k=block_k,
    pools=tuple(pools),
    scale=scaling.of_count(
      scale_by, _visible(levels, tokens, block_q, block_k), layout, q.shape[-1]
    ),
    most=most,
    implementation=module.implementation,
  )
  return out if places is None else out[:, permutations.inverse(places)]


def _order(layout, window, order) -> np.ndarray | None:
  """Returns the order of the tokens, None if they stay as they are."""
  if window is not None and order != "rows":
    raise ValueError(
      f"order is {order!r} and window {tuple(window)}; blocks are made by one "
      "of them"
    )
  if window is not None:
    of_grid = permutations.windows(layout.grid, window)
  elif order == "gilbert":
    of_grid = permutations.gilbert(layout.grid)
  else:
    return None
  return permutations.joined(of_grid, layout.text)


def _visible(levels, tokens, block_q, block_k) -> jax.Array:
  """Returns how many keys queries see, [batch, heads, tokens]."""
  blocks = levels.shape[-1]
  of_block = np.minimum(block_k, tokens - block_k * np.arange(blocks))
  seen = (levels > 0) @ jnp.asarray(of_block)  # [batch, heads, q_blocks]
  return jnp.repeat(seen, block_q, axis=-1)[..., :tokens]


def _importance(q, k, block_q, block_k, kind, seed, stride) -> jax.Array:
  """Returns [batch, heads, q_blocks, k_blocks]."""
  key = None if seed is None else jax.random.key(seed)
  if kind == "scores":
    return pyramid_importance.block_importance(
      q, k, block_q=block_q, block_k=block_k, key=key
    )
  if kind == "antidiagonal":
    return pyramid_importance.antidiagonal_importance(
      q, k, block_q=block_q, block_k=block_k, stride=stride
    )
  batch, tokens, heads, _ = q.shape
  shape = (batch, heads, -(-tokens // block_q), -(-tokens // block_k))
  return jax.random.uniform(jax.random.key(seed or 0), shape)
