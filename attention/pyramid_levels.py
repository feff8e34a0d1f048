"""Which level of the pyramid each block of keys gets, by its importance.

Of "PSA: Pyramid Sparse Attention" (arXiv 2512.04025), its section of levels, in
the forms of its released code. `attention.pyramid_importance` says what is
important. Nothing here has a gradient.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from attention import checks
from attention.pyramid import POOLS

# A row's first level has at least so many of its blocks when it is filled by
# mass, rounded down, and one more.
LEAST_SHARE = 0.06


def levels_by_count(
  importance: Float[Array, "*lead q_blocks k_blocks"],
  bounds: Sequence[float],
  *,
  pools: Sequence[int] = POOLS,
  tile_share: float = 0.0,
  causal: bool = False,
) -> Int[Array, "*lead q_blocks k_blocks"]:
  """Returns levels by the rank of a block in its row: "topk" of the paper.

  Level n goes on to the rank int(blocks * bound), and all behind the last is 0.
  With `causal` blocks are those up to a row's own, as many as its number: their
  importance must be above that of later ones, and `with_diagonal` keeps what
  rounding left empty.

  Args:
    importance: of each block.
    bounds: for each of `pools` the share of a row's blocks that is at this
      level or a finer one; not falling.
    pools: the levels.
    tile_share: the paper's tile of keys over `block_k`, where a kernel fills a
      tile with several blocks; then the number of blocks at a level is a
      multiple of ceil(level * tile_share), rounded up, and down at the end of
      the row. Our kernels need none.
    causal: whether rows are counted each by itself, without `tile_share`.

  Raises:
    ValueError: if `bounds` do not rise from 0 to 1, one for each level, or if
      they leave nothing of so few blocks.
  """
  checks.flag("causal", causal)
  rows, blocks = importance.shape[-2:]
  if causal:
    _check_bounds(bounds, pools)
    seen = np.minimum(np.arange(1, rows + 1), blocks)[:, None]
    ends = (seen * np.asarray(bounds, np.float64)).astype(int)
  else:
    ends = np.array([count_ends(blocks, bounds, pools, tile_share)])
  # [rows or 1, blocks]: the level of each rank.
  ranked = np.zeros((len(ends), blocks), np.int32)
  for level, end in reversed([*zip(pools, ends.T, strict=True)]):
    ranked[np.arange(blocks) < end[:, None]] = level
  ranked = jnp.broadcast_to(jnp.asarray(ranked), importance.shape)
  return jnp.take_along_axis(ranked, _ranks(importance), axis=-1)


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


def most_blocks(
  blocks: int,
  bounds: Sequence[float],
  pools: Sequence[int] = POOLS,
  tile_share: float = 0.0,
) -> tuple[int, ...]:
  """Returns the `most` of `pyramid_attention` for `levels_by_count`.

  A row has just so many blocks at each level.
  """
  ends = (0, *count_ends(blocks, bounds, pools, tile_share))
  return tuple(after - before for before, after in itertools.pairwise(ends))


def levels_by_mass(
  importance: Float[Array, "*lead q_blocks k_blocks"],
  bounds: Sequence[float],
  *,
  pools: Sequence[int] = POOLS,
  tile_share: float = 0.0,
  causal: bool = False,
) -> Int[Array, "*lead q_blocks k_blocks"]:
  """Returns levels by the importance so far: "thresholdbound" of the paper.

  Of blocks in falling order of importance, a level goes on to the one that
  makes the sum larger than its bound, that one included. The first level has at
  least `LEAST_SHARE` of the blocks and one more.

  With `causal` it is "energybound", of the released code for causal models: the
  block that makes the sum larger than a bound is at the next level, and behind
  the last bound at 0, however important it is; nothing is rounded, and no level
  has a least share. Importance of later blocks must be 0; `with_diagonal` sets
  their levels, and gives each row its own block.

  Args:
    importance: of each block, not negative.
    bounds: for each of `pools` the share of a row's importance.
    pools: the levels.
    tile_share: as for `levels_by_count`.
    causal: whether a level ends before the block that crosses its bound.

  Raises:
    ValueError: if `bounds` do not rise from 0 to 1, one for each level.
  """
  checks.flag("causal", causal)
  _check_bounds(bounds, pools)
  blocks = importance.shape[-1]
  ordered = -jnp.sort(-importance, axis=-1)
  mass = jnp.cumsum(ordered, axis=-1)
  mass = mass / mass[..., -1:]
  place = _places(importance)
  ranked = jnp.zeros(importance.shape, jnp.int32)
  start = jnp.zeros((*importance.shape[:-1], 1), jnp.int32)
  for level, bound in zip(pools, bounds, strict=True):
    end = jnp.sum(mass <= bound + 1e-6, axis=-1, keepdims=True)
    if not causal:
      end = jnp.where(end > 0, jnp.minimum(end + 1, blocks), start)
      least = int(LEAST_SHARE * blocks) + 1 if level == pools[0] else 0
      length = jnp.maximum(end - start, least)
      multiple = _multiple(level, tile_share)
      length = -(-length // multiple) * multiple
      room = blocks - start
      length = jnp.where(length > room, room // multiple * multiple, length)
      end = start + length
    ranked = jnp.where((place >= start) & (place < end), level, ranked)
    start = end
  return jnp.take_along_axis(ranked, _ranks(importance), axis=-1)


def with_text(
  levels: Int[Array, "*lead q_blocks k_blocks"],
  tokens: int,
  length: int,
  block_k: int,
  *,
  block_q: int | None = None,
) -> Int[Array, "*lead q_blocks k_blocks"]:
  """Returns levels with all blocks of keys that hold text at level 1.

  The released code takes the last ceil(tokens / block_k) blocks, which need not
  hold all of it where the last block is not whole.

  Args:
    levels: of each block.
    tokens: how many are text, the last ones.
    length: how many there are.
    block_k: keys in a block.
    block_q: queries in a block, to have level 1 in all of a row whose queries
      are text too, as in the code for causal models, where `with_diagonal` is
      applied to what this returns; None for columns alone.

  Raises:
    ValueError: if there are not so many tokens, or blocks.
  """
  checks.whole("tokens", tokens, 0)
  if tokens > length:
    raise ValueError(
      f"tokens is {tokens}; of length={length} at most so many can be text"
    )
  for axis, name, block in ((-1, "block_k", block_k), (-2, "block_q", block_q)):
    if block is None:
      continue
    checks.whole(name, block, 1)
    if levels.shape[axis] != -(-length // block):
      raise ValueError(
        f"levels has shape {levels.shape}; length={length} in blocks of "
        f"{name}={block} needs {-(-length // block)} along axis {axis}"
      )
    if tokens:
      place = lax.broadcasted_iota(jnp.int32, levels.shape, levels.ndim + axis)
      levels = jnp.where(place >= (length - tokens) // block, 1, levels)
  return levels


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
