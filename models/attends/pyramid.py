"""Attention that sees far keys as means: PSA (arXiv 2512.04025)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention import permutations, pyramid_importance, pyramid_levels
from attention import pyramid as pyramids
from models import registry, taps
from models.attends import orders, scaling
from models.attends.layout import Layout

CHOICES = ("count", "mass")
IMPORTANCE = ("scores", "antidiagonal", "random")


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
  clusters: Sequence[int] = (200, 1000),
  iterations: Sequence[int] = (50, 2),
  text_rows: bool = False,
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
    order: see `models.attends.orders`: "rows", "gilbert", which the paper has
      for most models, or "kmeans", another of queries than of keys. The text
      comes after the grid in any of them.
    clusters: of queries and of keys, for "kmeans".
    iterations: of the first step of sampling and of each later one, for
      "kmeans".
    text_rows: whether queries see all keys as they are where a block of them
      holds text, as in the released code for causal models.
    importance: "scores", `block_importance`; "antidiagonal", the estimate that
      the paper has for causal models, `antidiagonal_importance`; or "random",
      for comparison.
    stride: tokens in a group of the antidiagonal estimate; divides both blocks.
    seed: of the positions that scores are made of, a quarter of each block, of
      random importance and of the first centroids; None for scores of all
      positions.
    scale_by: "constant" or "entropy", see `models.attends.scaling`; a mean of g
      keys is g of those that a query sees.

  Raises:
    ValueError: for options that do not fit, or where queries and keys are not
      the tokens of the layout.
  """
  for name, value, known in (
    ("chosen_by", chosen_by, CHOICES),
    ("importance", importance, IMPORTANCE),
    ("order", order, orders.ORDERS),
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
  places = orders.of_tokens(
    module, q, k, layout, order, window, clusters, iterations, seed
  )
  if places is not None:
    q = permutations.reordered(q, places[0])
    k, v = (permutations.reordered(x, places[1]) for x in (k, v))
  blocks = -(-tokens // block_k)
  look = _importance(q, k, block_q, block_k, importance, seed, stride)
  choose = {
    "count": pyramid_levels.levels_by_count,
    "mass": pyramid_levels.levels_by_mass,
  }[chosen_by]
  levels = choose(look, tuple(bounds), pools=tuple(pools))
  most = None
  if chosen_by == "count":
    most = pyramid_levels.most_blocks(blocks, tuple(bounds), tuple(pools))
  if caps is not None:
    allowed = pyramid_importance.similarity_caps(k, block_k, caps, pools=pools)
    levels, most = jnp.minimum(levels, allowed[:, :, None]), None
  levels = pyramid_levels.with_text(
    levels,
    layout.text,
    tokens,
    block_k,
    block_q=block_q if text_rows else None,
  )
  levels = taps.tap(module, "levels", levels)
  if most is not None and layout.text:
    with_text = blocks if text_rows else blocks - layout.places // block_k
    most = (min(most[0] + with_text, blocks), *most[1:])
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
  if places is None:
    return out
  return permutations.reordered(out, permutations.inverse(places[0]))


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
