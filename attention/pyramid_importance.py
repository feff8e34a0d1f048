"""How blocks of queries look at blocks of keys, and how alike the keys are.

What PSA (arXiv 2512.04025) chooses levels by, see `attention.pyramid_levels`,
in the forms of its released code: for video, and for causal models of language
and images. Nothing here has a gradient.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from attention import checks
from attention.pyramid import POOLS


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


def antidiagonal_importance(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len k_heads dim"],
  *,
  block_q: int,
  block_k: int,
  scale: float | None = None,
  stride: int = 16,
  causal: bool = False,
) -> Float[Array, "batch heads q_blocks k_blocks"]:
  """Returns how much blocks look at each other along antidiagonals.

  XAttention's estimate (arXiv 2503.16428), "xattn" in the code of PSA for
  causal models. Tokens are in groups of `stride`; the score of two groups is
  the mean of the scores on an antidiagonal of their square, of its first query
  with the last key, and so on. Their softmax along keys is summed within
  blocks. So it costs 1 / `stride` of the scores. A row of blocks sums up to the
  groups that it has.

  Groups behind the end are not there; in the last one that is, tokens that are
  not there have zeros, as in the released code. With `causal` a group sees
  itself and those before, so the choice for a block, unlike the attention,
  depends on all queries in it.

  Args:
    q: queries.
    k: keys.
    block_q: queries in a block.
    block_k: keys in a block.
    scale: factor of the scores; dim ** -0.5 if None.
    stride: tokens in a group.
    causal: whether a group sees no later ones.

  Raises:
    ValueError: if a size is no whole number above 0, `stride` does not divide
      both blocks, or queries and keys differ in number with `causal`.
  """
  checks.whole("stride", stride, 1)
  checks.flag("causal", causal)
  for name, size in (("block_q", block_q), ("block_k", block_k)):
    checks.whole(name, size, 1)
    if size % stride:
      raise ValueError(
        f"stride is {stride}; it must divide {name}={size}, as "
        f"{np.gcd(stride, size)} does"
      )
  if causal and q.shape[1] != k.shape[1]:
    raise ValueError(
      f"causal is True, and q has {q.shape[1]} tokens and k {k.shape[1]}; they "
      "must have as many"
    )
  q, k = lax.stop_gradient((q, k))
  heads, dim = q.shape[2:]
  k = jnp.repeat(k, heads // k.shape[2], axis=2)
  scale = dim**-0.5 if scale is None else scale
  groups, keys = (-(-x.shape[1] // stride) for x in (q, k))
  # [batch, heads, blocks, groups, stride, dim]
  q, k = (
    _in_blocks(x, block, mode="constant").reshape(
      *(x.shape[0], heads, -1, block // stride, stride, dim)
    )
    for x, block in ((q, block_q), (k, block_k))
  )
  k = k[..., ::-1, :]
  # Of scores [batch, heads, query groups, blocks, key groups].
  key_group = jnp.arange(k.shape[2] * k.shape[3])
  key_group = key_group.reshape(1, 1, 1, *k.shape[2:4])

  def of_block(number_and_queries):
    number, q = number_and_queries
    score = jnp.einsum(
      "bhqsd,bhnksd->bhqnk", q, k, preferred_element_type=jnp.float32
    )
    group = number * q.shape[2] + jnp.arange(q.shape[2])
    group = group.reshape(1, 1, -1, 1, 1)
    seen = key_group < keys
    if causal:
      seen = seen & (key_group <= group)
    score = jnp.where(seen, score * (scale / stride), -jnp.inf)
    weights = jax.nn.softmax(score, axis=(-2, -1))
    return jnp.where(group < groups, weights, 0.0).sum(axis=(2, 4))

  numbers = jnp.arange(q.shape[2])
  looked = lax.map(of_block, (numbers, jnp.moveaxis(q, 2, 0)))
  return jnp.moveaxis(looked, 0, 2)


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


def _in_blocks(x: Array, block: int, mode: str = "edge") -> Array:
  """[batch, length, heads, dim] -> [batch, heads, blocks, block, dim]"""
  batch, length, heads, dim = x.shape
  x = jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0)), mode=mode)
  return x.swapaxes(1, 2).reshape(batch, heads, -1, block, dim)


def _drawn(key: Array, x: Array) -> Array:
  """Returns a quarter of the tokens of each block, the same in all blocks."""
  batch, heads, _, block, _ = x.shape
  keys = jax.random.split(key, (batch, heads))
  number = max(block // 4, 1)

  def of_head(key, x):
    return x[:, jax.random.permutation(key, block)[:number]]

  return jax.vmap(jax.vmap(of_head))(keys, x)
