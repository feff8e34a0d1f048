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
  most: int | None = None,
  implementation: str = "auto",
) -> Float[Array, "batch q_len heads v_dim"]:
  """Returns softmax attention to the keys and means that `levels` choose.

  A mean is of the keys that there are: where the sequence ends within a group,
  it is of fewer keys and counts as so many. The released code fills the last
  block with copies of the last key instead, and sees these in levels above 1.

  With `causal` a mean is seen where the query is not before the last of its
  keys, so a row needs its own block, or an earlier one, at level 1.

  Kernels walk over tiles of `block_k` / 8 keys (the last of `pools`), of which
  a TPU needs multiples of 128 and a GPU of 16; else "auto" takes the reference.

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
    most: the most tiles that a row of `levels` sees, for levels that are not
      known before the program runs: see `pyramid_levels.most_tiles`. Kernels
      walk no further.
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
  last, count = _members(kv_len, block_k, pools)
  mask = masks.blocks(
    level_table(levels, pools), block_q, block_k // pools[-1], most=most
  )
  if causal:
    places = (np.arange(kv_len, dtype=np.int32), last)
    mask = mask & masks.positions(
      *(jnp.broadcast_to(x, (q.shape[0], x.size)) for x in places)
    )
  return dot_product_attention(
    q,
    pyramid(k, block_k, pools),
    pyramid(v, block_k, pools),
    bias=jnp.asarray(_log(count)),
    scale=scale,
    mask=mask,
    implementation=implementation,
  )


def pyramid(
  x: Float[Array, "batch length heads dim"],
  block_k: int,
  pools: Sequence[int] = POOLS,
) -> Float[Array, "batch pooled heads dim"]:
  """Returns keys or values, and behind them their means, level by level.

  Each level is padded with zeros to whole blocks, [K1 | K2 | K4 | K8]: with n
  blocks it has n * `block_k` / level rows. Means are made in float32.

  Args:
    x: keys or values.
    block_k: tokens in a block.
    pools: how many tokens a mean of each level has.

  Raises:
    ValueError: if `pools` are none that divide `block_k`.
  """
  _check_pools(pools, block_k)
  batch, length, heads, dim = x.shape
  padded = jnp.pad(x, ((0, 0), (0, -length % block_k), (0, 0), (0, 0)))
  _, count = _members(length, block_k, pools)
  levels, start = [], 0
  for pool in pools:
    # [batch, means, pool, heads, dim]
    groups = padded.reshape(batch, -1, pool, heads, dim)
    among = count[start : start + groups.shape[1]]
    start += groups.shape[1]
    if pool == 1:
      levels.append(padded)
      continue
    total = groups.astype(jnp.float32).sum(axis=2)
    share = 1 / np.maximum(among, 1).astype(np.float32)
    levels.append((total * share[None, :, None, None]).astype(x.dtype))
  return jnp.concatenate(levels, axis=1)


def level_table(
  levels: Int[Array | np.ndarray, "*lead q_blocks k_blocks"],
  pools: Sequence[int] = POOLS,
) -> Array | np.ndarray:
  """Returns which tiles of the keys of `pyramid` each block of queries sees.

  A tile has block_k / pools[-1] rows, so a block has pools[-1] / level of them
  at each level.

  Returns:
    Booleans [*lead, q_blocks, tiles]; NumPy for NumPy.
  """
  library = np if isinstance(levels, np.ndarray) else jnp
  return library.concatenate(
    [
      library.repeat(levels == pool, pools[-1] // pool, axis=-1)
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
  length: int, block_k: int, pools: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the last token and the number of tokens of each row of `pyramid`.

  The last of a mean of nothing is -1, a position that nobody sees.
  """
  padded = length + -length % block_k
  last, count = [], []
  for pool in pools:
    first = np.arange(0, padded, pool)
    behind = np.minimum(first + pool, length)
    number = np.maximum(behind - first, 0)
    last.append(np.where(number > 0, behind - 1, -1))
    count.append(number)
  return tuple(np.concatenate(x).astype(np.int32) for x in (last, count))


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
