"""Pyramid sparse attention: far keys as means of two, four or eight.

"PSA: Pyramid Sparse Attention" (arXiv 2512.04025; equations from its released
code, ziplab/Pyramid-Sparse-Attention). A mask says of each block of queries and
block of keys whether it is seen or not. Here it is a *level*: 1 sees the keys,
2, 4 and 8 see means of so many neighbours, 0 sees nothing. The keys of all
levels stand behind each other as one set of keys, [K1 | K2 | K4 | K8], so that
it is `dot_product_attention` with a block mask and a bias: a mean of g keys
counts as g keys by ln(g) added to its score.

`attention.pyramid_levels` makes levels.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attention import checks, masks
from attention.dot_product import dot_product_attention
from attention.kernels import dispatch, flash

# How many keys a mean of each level has.
POOLS = (1, 2, 4, 8)
# The bias of a mean of no key, behind the end of the sequence.
_NOTHING = -1e30


def pyramid_attention(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len k_heads dim"],
  v: Float[Array, "batch kv_len v_heads v_dim"],
  levels: Int[Array | np.ndarray, "some_batch some_heads q_blocks k_blocks"],
  *,
  block_q: int,
  block_k: int,
  scale: float | Float[Array, "..."] | None = None,
  causal: bool = False,
  pools: Sequence[int] = POOLS,
  most: Sequence[int] | None = None,
  implementation: str = "auto",
) -> Float[Array, "batch q_len heads v_dim"]:
  """Returns softmax attention to the keys and means that `levels` choose.

  A mean is of the keys that there are: where the sequence ends within a group,
  it is of fewer keys and counts as so many. The released code fills the last
  block with copies of the last key instead, and sees these in levels above 1.

  With `causal` a mean is seen where the query is not before the last of its
  keys, so a row needs its own block, or an earlier one, at level 1.

  Kernels walk over tiles of `block_k` / 8 keys (the last of `pools`), or more:
  multiples of 128 on a TPU and of 16 on a GPU. Where a block has fewer means
  than that, rows that weigh nothing fill its tile: blocks of 64 keys of a GPU
  have eight means of eight and eight such rows, and those of 128 of a TPU cost
  as much at all levels, so that blocks of 512 x 1024 suit it. (The released
  kernel puts the means of two blocks into a tile, and where it would need more,
  as with blocks of 32 keys, it reads wrong ones.)

  Args:
    q: queries.
    k: keys.
    v: values.
    levels: one of `pools`, or 0, for each block; batch and heads may be of size
      one. A NumPy array is checked, and kernels know it before the program
      runs.
    block_q: queries in a block.
    block_k: keys in a block.
    scale: see `dot_product_attention`; not of the bias.
    causal: whether a query sees only what is not after it.
    pools: the levels that `levels` may have, ascending and each a multiple of
      the one before, from 1 on.
    most: the most blocks that a row of `levels` has at each of `pools`, for
      levels that are not known before the program runs: see
      `pyramid_levels.most_blocks`. Kernels walk no further than these need.
    implementation: see `dot_product_attention`.

  Raises:
    ValueError: if blocks, levels or pools do not fit; for NumPy levels also if
      a row sees nothing.
  """
  _check_pools(pools, block_k)
  checks.whole("block_q", block_q, 1)
  checks.flag("causal", causal)
  kv_len = k.shape[1]
  _check_levels(levels, q.shape, kv_len, block_q, block_k, pools)
  if causal and q.shape[1] != kv_len:
    raise ValueError(
      f"causal is True, and q has {q.shape[1]} tokens and k {kv_len}; they "
      "must have as many"
    )
  tile = kernel_tile(block_k, pools, dispatch.platform(implementation))
  last, count = _members(kv_len, block_k, pools, tile)
  table = level_table(levels, block_k, pools, tile)
  if most is not None:
    most = _most_tiles(most, block_k, pools, tile)
  mask = masks.blocks(table, block_q, tile, most=most)
  if causal:
    places = (np.arange(kv_len, dtype=np.int32), last)
    mask = mask & masks.positions(
      *(jnp.broadcast_to(x, (q.shape[0], x.size)) for x in places)
    )
  return dot_product_attention(
    q,
    pyramid(k, block_k, pools, tile),
    pyramid(v, block_k, pools, tile),
    bias=jnp.asarray(_log(count)),
    scale=scale,
    mask=mask,
    implementation=implementation,
  )


def pyramid(
  x: Float[Array, "batch length heads dim"],
  block_k: int,
  pools: Sequence[int] = POOLS,
  tile: int = 1,
) -> Float[Array, "batch pooled heads dim"]:
  """Returns keys or values, and behind them their means, level by level.

  Each level is padded with zeros to whole blocks, [K1 | K2 | K4 | K8], and each
  block of it to whole tiles: with n blocks it has n * `block_k` / level rows if
  tiles divide that. Means are made in float32.

  Args:
    x: keys or values.
    block_k: tokens in a block.
    pools: how many tokens a mean of each level has.
    tile: rows in a tile.

  Raises:
    ValueError: if `pools` are none that divide `block_k`.
  """
  _check_pools(pools, block_k)
  batch, length, heads, dim = x.shape
  padded = jnp.pad(x, ((0, 0), (0, -length % block_k), (0, 0), (0, 0)))
  levels = []
  for pool in pools:
    # [batch, blocks, means, pool, heads, dim]
    groups = padded.reshape(batch, -1, block_k // pool, pool, heads, dim)
    means = groups[:, :, :, 0]
    if pool > 1:
      among = _among(length, block_k, pool)
      share = 1 / np.maximum(among, 1).astype(np.float32)
      total = groups.astype(jnp.float32).sum(axis=3)
      means = (total * share[None, :, :, None, None]).astype(x.dtype)
    fill = -means.shape[2] % tile
    means = jnp.pad(means, ((0, 0), (0, 0), (0, fill), (0, 0), (0, 0)))
    levels.append(means.reshape(batch, -1, heads, dim))
  return jnp.concatenate(levels, axis=1)


def kernel_tile(
  block_k: int, pools: Sequence[int] = POOLS, platform: str = "cpu"
) -> int:
  """Returns how many rows of `pyramid` the tiles of a platform's kernels have.

  Those of a block at the last level, in whole multiples of the least that its
  kernels take.
  """
  tile = block_k // pools[-1]
  least = flash.least_keys(platform)
  return -(-tile // least) * least


def level_table(
  levels: Int[Array | np.ndarray, "*lead q_blocks k_blocks"],
  block_k: int,
  pools: Sequence[int] = POOLS,
  tile: int | None = None,
) -> Array | np.ndarray:
  """Returns which tiles of the keys of `pyramid` each block of queries sees.

  Args:
    levels: see `pyramid_attention`.
    block_k: keys in a block.
    pools: the levels.
    tile: rows in a tile; `block_k` / pools[-1] if None.

  Returns:
    Booleans [*lead, q_blocks, tiles]; NumPy for NumPy.
  """
  tile = block_k // pools[-1] if tile is None else tile
  library = np if isinstance(levels, np.ndarray) else jnp
  return library.concatenate(
    [
      library.repeat(levels == pool, -(-block_k // pool // tile), axis=-1)
      for pool in pools
    ],
    axis=-1,
  )


def density(
  levels: Int[Array | np.ndarray, "*lead q_blocks k_blocks"],
) -> Float[Array | np.ndarray, "*lead"]:
  """Returns the share of the products of full attention that levels leave.

  The mean of 1 / level, 0 for level 0.
  """
  library = np if isinstance(levels, np.ndarray) else jnp
  share = library.where(levels > 0, 1 / library.maximum(levels, 1), 0.0)
  return library.asarray(share.mean(axis=(-2, -1)))


def _members(
  length: int, block_k: int, pools: Sequence[int], tile: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the last token and the number of tokens of each row of `pyramid`.

  The last of a mean of nothing is -1, a position that nobody sees.
  """
  last, count = [], []
  for pool in pools:
    among = _among(length, block_k, pool)
    first = np.arange(among.size).reshape(among.shape) * pool
    behind = np.where(among > 0, first + among - 1, -1)
    fill = ((0, 0), (0, -among.shape[1] % tile))
    last.append(np.pad(behind, fill, constant_values=-1).reshape(-1))
    count.append(np.pad(among, fill).reshape(-1))
  return tuple(np.concatenate(x).astype(np.int32) for x in (last, count))


def _among(length: int, block_k: int, pool: int) -> np.ndarray:
  """Returns how many tokens each mean of a level has, [blocks, means]."""
  first = np.arange(0, length + -length % block_k, pool)
  return np.clip(length - first, 0, pool).reshape(-1, block_k // pool)


def _most_tiles(
  most: Sequence[int], block_k: int, pools: Sequence[int], tile: int
) -> int:
  for number in most:
    checks.whole("an entry of most", number, 0)
  if len(most) != len(pools) or not any(most):
    raise ValueError(
      f"most is {tuple(most)}; it must have a number for each of the levels "
      f"{tuple(pools)}, not all 0"
    )
  of_block = (-(-block_k // pool // tile) for pool in pools)
  return sum(n * tiles for n, tiles in zip(most, of_block, strict=True))


def _log(count: np.ndarray) -> np.ndarray:
  logarithm = np.log(np.maximum(count, 1))
  return np.where(count > 0, logarithm, _NOTHING).astype(np.float32)


def _check_pools(pools: Sequence[int], block_k: int) -> None:
  checks.whole("block_k", block_k, 1)
  pools = tuple(pools)
  for pool in pools:
    checks.whole("an entry of pools", pool, 1)
  rising = all(b > a and b % a == 0 for a, b in itertools.pairwise(pools))
  if not pools or pools[0] != 1 or not rising:
    raise ValueError(
      f"pools is {pools}; it must begin with 1, and each must be a multiple of "
      f"the one before, such as {POOLS}"
    )
  if block_k % pools[-1]:
    raise ValueError(
      f"block_k is {block_k}; means of {pools[-1]} keys need a multiple of "
      f"{pools[-1]}, or smaller pools than {pools}"
    )


def _check_levels(levels, q_shape, kv_len, block_q, block_k, pools) -> None:
  checks.integers("levels", levels)
  batch, q_len, heads, _ = q_shape
  fits = (batch, heads, -(-q_len // block_q), -(-kv_len // block_k))
  shape = levels.shape
  if (
    len(shape) != 4
    or shape[2:] != fits[2:]
    or any(
      have not in (1, want)
      for have, want in zip(shape[:2], fits[:2], strict=True)
    )
  ):
    raise ValueError(
      f"levels has shape {shape}; {q_len} queries in blocks of {block_q} and "
      f"{kv_len} keys in blocks of {block_k} need {fits}, the first two "
      "possibly of size one"
    )
  if not isinstance(levels, np.ndarray):
    return
  unknown = set(np.unique(levels).tolist()) - {0, *pools}
  if unknown:
    raise ValueError(
      f"levels has {sorted(unknown)}; it takes 0 and {tuple(pools)}"
    )
  empty = np.argwhere(~levels.any(axis=-1))
  if empty.size:
    raise ValueError(
      f"levels are all 0 for the queries of block {empty[0].tolist()} (batch, "
      "head, block); each needs at least one block above 0"
    )
