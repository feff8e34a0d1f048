"""Which level of the pyramid each block of keys gets, by how it is looked at.

Of "PSA: Pyramid Sparse Attention" (arXiv 2512.04025), sections of importance
and of levels, in the form of its released code for video; the estimate that it
has for causal language models is not here. Nothing here has a gradient.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from attention import checks
from attention.pyramid import POOLS

# A row's first level has at least so many of its blocks when it is filled by
# mass, rounded down, and one more.
LEAST_SHARE = 0.06


def block_importance(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len k_heads dim"],
  *,
  block_q: int,
  block_k: int,
  scale: float | None = None,
  key: Array | None = None,
) -> Float[Array, "batch heads q_blocks k_blocks"]:
  """Returns how much the queries of a block look at the keys of another.

  With r_iJ the largest score of query i in block J, and m_i its largest of all:
  the most that exp(r_iJ - m_i) is for a query of the block, over its sum along
  the row. Both lengths are filled up with copies of the last token.

  Args:
    q: queries.
    k: keys.
    block_q: queries in a block.
    block_k: keys in a block.
    scale: factor of the scores; dim ** -0.5 if None.
    key: random key, for the paper's estimate by a quarter of the positions of a
      block, drawn for each row of the batch and head and the same in all
      blocks; by all positions if None.

  Raises:
    ValueError: if a size is no whole number above 0.
  """
  for name, size in (("block_q", block_q), ("block_k", block_k)):
    checks.whole(name, size, 1)
  q, k = lax.stop_gradient((q, k))
  heads, dim = q.shape[2:]
  k = jnp.repeat(k, heads // k.shape[2], axis=2)
  scale = dim**-0.5 if scale is None else scale
  # [batch, heads, blocks, tokens, dim]
  q, k = (_in_blocks(x, n) for x, n in ((q, block_q), (k, block_k)))
  if key is not None:
    of_q, of_k = jax.random.split(key)
    q, k = _drawn(of_q, q), _drawn(of_k, k)

  def of_block(q):
    score = jnp.einsum(
      "bhqd,bhnkd->bhqnk", q, k, preferred_element_type=jnp.float32
    )
    largest = scale * score.max(axis=-1)
    share = jnp.exp(largest - largest.max(axis=-1, keepdims=True))
    return share.max(axis=2)

  # One block of queries after another, for there may be many scores.
  looked = lax.map(of_block, jnp.moveaxis(q, 2, 0))
  looked = jnp.moveaxis(looked, 0, 2)
  return looked / looked.sum(axis=-1, keepdims=True)


def levels_by_count(
  importance: Float[Array, "*lead q_blocks k_blocks"],
  bounds: Sequence[float],
  *,
  pools: Sequence[int] = POOLS,
  tile_share: float = 0.0,
) -> Int[Array, "*lead q_blocks k_blocks"]:
  """Returns levels by the rank of a block in its row: "topk" of the paper.

  Level n goes on to the rank int(blocks * bound), and all behind the last is 0.

  Args:
    importance: of each block.
    bounds: for each of `pools` the share of a row's blocks that is at this
      level or a finer one; not falling.
    pools: the levels.
    tile_share: the paper's tile of keys over `block_k`, where a kernel fills a
      tile with several blocks; then the number of blocks at a level is a
      multiple of ceil(level * tile_share), rounded up, and down at the end of
      the row. Our kernels need none.

  Raises:
    ValueError: if `bounds` do not rise from 0 to 1, one for each level, or if
      they leave nothing of so few blocks.
  """
  ends = count_ends(importance.shape[-1], bounds, pools, tile_share)
  blocks = importance.shape[-1]
  ranked = np.zeros(blocks, np.int32)
  start = 0
  for level, end in zip(pools, ends, strict=True):
    ranked[start:end] = level
    start = end
  return jnp.asarray(ranked)[_ranks(importance)]


def count_ends(
  blocks: int,
  bounds: Sequence[float],
  pools: Sequence[int] = POOLS,
  tile_share: float = 0.0,
) -> tuple[int, ...]:
  """Returns the rank at which each level of `levels_by_count` ends.

  Args and errors are those of `levels_by_count`, with the number of blocks.
  """
  _check_bounds(bounds, pools)
  ends, end = [], 0
  for level, bound in zip(pools, bounds, strict=True):
    multiple = _multiple(level, tile_share)
    length = max(int(blocks * bound) - end, 0)
    length = -(-length // multiple) * multiple
    if end + length > blocks:
      length = (blocks - end) // multiple * multiple
    end += length
    ends.append(end)
  if not end:
    raise ValueError(
      f"bounds is {tuple(bounds)}; of {blocks} blocks of keys it leaves none: "
      f"the last must be at least {1 / blocks:.4g}, or blocks smaller"
    )
  return tuple(ends)


def most_tiles(
  blocks: int,
  bounds: Sequence[float],
  pools: Sequence[int] = POOLS,
  tile_share: float = 0.0,
) -> int:
  """Returns the `most` of `pyramid_attention` for `levels_by_count`.

  A row has just so many tiles of block_k / pools[-1] rows.
  """
  ends = (0, *count_ends(blocks, bounds, pools, tile_share))
  return sum(
    (after - before) * (pools[-1] // level)
    for (before, after), level in zip(
      itertools.pairwise(ends), pools, strict=True
    )
  )


def levels_by_mass(
  importance: Float[Array, "*lead q_blocks k_blocks"],
  bounds: Sequence[float],
  *,
  pools: Sequence[int] = POOLS,
  tile_share: float = 0.0,
) -> Int[Array, "*lead q_blocks k_blocks"]:
  """Returns levels by the importance so far: "thresholdbound" of the paper.

  Of blocks in falling order of importance, a level goes on to the one that
  makes the sum larger than its bound, that one included. The first level has at
  least `LEAST_SHARE` of the blocks and one more.

  Args:
    importance: of each block, not negative.
    bounds: for each of `pools` the share of a row's importance.
    pools: the levels.
    tile_share: as for `levels_by_count`.

  Raises:
    ValueError: if `bounds` do not rise from 0 to 1, one for each level.
  """
  _check_bounds(bounds, pools)
  blocks = importance.shape[-1]
  ordered = -jnp.sort(-importance, axis=-1)
  mass = jnp.cumsum(ordered, axis=-1)
  mass = mass / mass[..., -1:]
  place = _places(importance)
  ranked = jnp.zeros(importance.shape, jnp.int32)
  start = jnp.zeros((*importance.shape[:-1], 1), jnp.int32)
  for level, bound in zip(pools, bounds, strict=True):
    below = jnp.sum(mass <= bound + 1e-6, axis=-1, keepdims=True)
    end = jnp.where(below > 0, jnp.minimum(below + 1, blocks), start)
    length = jnp.maximum(end - start, 0)
    if level == pools[0]:
      length = jnp.maximum(length, int(LEAST_SHARE * blocks) + 1)
    multiple = _multiple(level, tile_share)
    length = -(-length // multiple) * multiple
    room = blocks - start
    length = jnp.where(length > room, room // multiple * multiple, length)
    here = (place >= start) & (place < start + length)
    ranked = jnp.where(here, level, ranked)
    start = start + length
  return jnp.take_along_axis(ranked, _ranks(importance), axis=-1)


def similarity_caps(
  k: Float[Array, "batch kv_len k_heads dim"],
  block_k: int,
  thresholds: Sequence[float],
  *,
  pools: Sequence[int] = POOLS,
) -> Int[Array, "batch k_heads k_blocks"]:
  """Returns the coarsest level at which the keys of a block are alike enough.

  Level n is allowed where the mean cosine of the first and the last key of each
  group of n is above its threshold; the coarsest that is allowed counts,
  whatever is between. `jnp.minimum(levels, caps[:, :, None])` caps levels.

  Args:
    k: keys.
    block_k: keys in a block.
    thresholds: one for each of `pools` but the first.
    pools: the levels.

  Raises:
    ValueError: if there are not as many thresholds.
  """
  checks.whole("block_k", block_k, 1)
  if len(thresholds) != len(pools) - 1:
    raise ValueError(
      f"thresholds is {tuple(thresholds)}; levels {tuple(pools)} need "
      f"{len(pools) - 1}, none for the first"
    )
  k = _in_blocks(lax.stop_gradient(k), block_k).astype(jnp.float32)
  unit = k * lax.rsqrt(jnp.maximum((k**2).sum(-1, keepdims=True), 1e-24))
  caps = jnp.full(k.shape[:3], pools[0], jnp.int32)
  for level, least in zip(pools[1:], thresholds, strict=True):
    first, last = unit[..., ::level, :], unit[..., level - 1 :: level, :]
    alike = (first * last).sum(axis=-1).mean(axis=-1)
    caps = jnp.where(alike > least, level, caps)
  return caps


def with_text(
  levels: Int[Array, "*lead q_blocks k_blocks"], tokens: int, block_k: int
) -> Int[Array, "*lead q_blocks k_blocks"]:
  """Returns levels with the last ceil(tokens / block_k) blocks at level 1."""
  checks.whole("tokens", tokens, 0)
  blocks = levels.shape[-1]
  text = _places(levels) >= blocks - -(-tokens // block_k)
  return jnp.where(text, 1, levels)


def with_diagonal(
  levels: Int[Array, "*lead blocks blocks"],
) -> Int[Array, "*lead blocks blocks"]:
  """Returns levels for causal attention, of blocks as long on both sides.

  The first block and a query's own are at level 1, and later ones at 0.
  """
  row, column = (
    lax.broadcasted_iota(jnp.int32, levels.shape, levels.ndim - axis)
    for axis in (2, 1)
  )
  kept = jnp.where((column == 0) | (column == row), 1, levels)
  return jnp.where(column > row, 0, kept)


def lists_of_levels(
  levels: Int[Array, "*lead k_blocks"],
  importance: Float[Array, "*lead k_blocks"],
  pools: Sequence[int] = POOLS,
) -> Int[Array, "*lead entries"]:
  """Returns the paper's other format: the blocks of each level, then -1.

  Level after level, 0 at last, with the most important block first: k_blocks
  entries and a -1 for each level.
  """
  order = jnp.asarray([*pools, 0])
  same = levels[..., None] == order.reshape((1,) * levels.ndim + (-1,))
  group = jnp.argmax(same, axis=-1)
  ranks = _ranks(importance)
  blocks = levels.shape[-1]
  ids = jnp.argsort(group * blocks + ranks, axis=-1)
  # Each block stands behind the ends of the groups before its own.
  place = _places(ids) + jnp.take_along_axis(group, ids, axis=-1)
  entries = jnp.full((*levels.shape[:-1], blocks + len(order)), -1, jnp.int32)
  return jnp.put_along_axis(
    entries, place, ids.astype(jnp.int32), axis=-1, inplace=False
  )


def levels_of_lists(
  lists: Int[Array, "*lead entries"], pools: Sequence[int] = POOLS
) -> Int[Array, "*lead k_blocks"]:
  """Returns the levels of what `lists_of_levels` makes."""
  order = jnp.asarray([*pools, 0], jnp.int32)
  blocks = lists.shape[-1] - len(order)
  ends = lists == -1
  group = jnp.cumsum(ends, axis=-1) - ends
  level = order[jnp.minimum(group, len(pools))]
  # One place more than there are blocks, for the ends.
  place = jnp.where(ends, blocks, lists)
  levels = jnp.zeros((*lists.shape[:-1], blocks + 1), jnp.int32)
  levels = jnp.put_along_axis(levels, place, level, axis=-1, inplace=False)
  return levels[..., :blocks]


def _in_blocks(x: Array, block: int) -> Array:
  """[batch, length, heads, dim] -> [batch, heads, blocks, block, dim]"""
  batch, length, heads, dim = x.shape
  x = jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0)), mode="edge")
  return x.swapaxes(1, 2).reshape(batch, heads, -1, block, dim)


def _drawn(key: Array, x: Array) -> Array:
  """Returns a quarter of the tokens of each block, the same in all blocks."""
  batch, heads, _, block, _ = x.shape
  keys = jax.random.split(key, (batch, heads))
  number = max(block // 4, 1)

  def of_head(key, x):
    return x[:, jax.random.permutation(key, block)[:number]]

  return jax.vmap(jax.vmap(of_head))(keys, x)


def _places(x: Array) -> Array:
  """Numbers the entries of the last axis, in the shape of `x`."""
  return lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def _ranks(importance: Array) -> Array:
  """Returns the place of each block in falling order; the first of equals."""
  order = jnp.argsort(importance, axis=-1, descending=True, stable=True)
  return jnp.argsort(order, axis=-1)


def _multiple(level: int, tile_share: float) -> int:
  return max(int(np.ceil(level * tile_share)), 1)


def _check_bounds(bounds: Sequence[float], pools: Sequence[int]) -> None:
  bounds = tuple(bounds)
  for bound in bounds:
    checks.number("an entry of bounds", bound)
  rising = all(a <= b for a, b in zip((0, *bounds), (*bounds, 1), strict=True))
  if len(bounds) != len(pools) or not rising:
    raise ValueError(
      f"bounds is {bounds}; it must have a share for each of the levels "
      f"{tuple(pools)}, none below the one before, from 0 to 1"
    )
