"""Hierarchical self-attention: softmax attention made constant on a tree.

The attention among siblings is dot-product attention of their means, and one
level hands to the next what its siblings leave over, by log-sum-exps.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attention import checks, masks
from attention.dot_product import dot_product_attention
from attention.tree_levels import Level
from attention.trees import Tree


def hierarchical_attention(
  q: Float[Array, "batch length heads dim"],
  k: Float[Array, "batch length k_heads dim"],
  v: Float[Array, "batch length v_heads v_dim"],
  tree: Tree,
  *,
  scale: float | None = None,
  self_term: bool = True,
  sibling_embeddings: Sequence[Float[Array, "places channels"]] | None = None,
  return_log_partition: bool = False,
  implementation: str = "auto",
) -> (
  Float[Array, "batch length heads v_dim"]
  | tuple[
    Float[Array, "batch length heads v_dim"],
    Float[Array, "batch length heads"],
  ]
):
  """Attention whose weights are constant between any two sibling subtrees.

  Of all such weights with rows of sum one these are the nearest to softmax
  attention, by the sum over queries of KL(theta_i || softmax_i) (Theorem 3.2 of
  arXiv 2509.15448; the form in log-partitions is ours). With means over leaves,

      s(B, C) = scale mean(q_B) . mean(k_C) + e(B) . e(C),  B and C siblings
      D(B) = exp F(B) + sum_C |C| exp s(B, C),  over the siblings C of B
      F(A) = sum_B |B| / |A| log D(B),          over the children B of A

  of what a leaf of B gives away |C| exp s(B, C) / D(B) goes to C, in equal
  parts to its leaves, and exp F(B) / D(B) stays in B, for the children of B to
  share. A node without siblings is as its only child. Time is linear in the
  length for families of a bounded size.

  Args:
    q: queries [batch, length, heads, dim].
    k: keys [batch, length, k_heads, dim]; k_heads divides heads.
    v: values [batch, length, v_heads, v_dim]; v_heads divides heads.
    tree: of `trees.regular` or `trees.runs`.
    scale: factor of the products; dim ** -0.5 if None.
    self_term: whether a token sees itself: F(leaf i) = s(i, i), with which a
      tree of one level is softmax attention. Without it F(leaf) is -inf; a
      token that is alone in its row then gets zeros.
    sibling_embeddings: for each level, from the leaves up, a row e for each
      place among siblings [places, channels]; none if None.
    return_log_partition: whether to return F of the root as well: with N tokens
      the sum of KL is sum_i logsumexp_j s_ij - N F(root).
    implementation: of the attention among siblings, see `kernels.dispatch`.

  Returns:
    [batch, length, heads, v_dim] in the dtype of `q`, zeros for padding, and if
    asked for F(root) of each token's tree [batch, length, heads]. Means,
    scores, logarithms and sums are float32.

  Raises:
    ValueError: if shapes, dtypes or options do not fit.
  """
  _check(q, k, v, tree, scale, self_term, return_log_partition)
  batch, length, _, dim = q.shape
  scale = dim**-0.5 if scale is None else scale
  planted = tree.planted(batch, length)
  _check_embeddings(sibling_embeddings, planted.levels)
  leaves = planted.leaves
  nodes = tuple(_at_leaves(x, leaves) for x in (q, k, v))
  # A NumPy array where shapes alone say how large nodes are.
  sizes, log_partition = leaves.astype(np.float32), None
  passed = []
  for i, level in enumerate(planted.levels):
    read = nodes
    if sibling_embeddings is not None:
      read = _with_embeddings(nodes, sibling_embeddings[i], level, sizes, scale)
    if log_partition is None:
      log_partition = _of_leaves(*read[:2], scale, self_term)
    if level.width == 1 and level.parents is None:
      continue  # Nodes without siblings are their children.
    options = {"scale": scale, "implementation": implementation}
    out, siblings = _among_siblings(level, read, sizes, **options)
    both = _log_add(log_partition, siblings)
    passed.append((level, out, *_shares(log_partition, siblings, both)))
    nodes, log_partition, sizes = _parents(level, nodes, both, sizes)
  # Down again: what a leaf was given, and how much it has left to give.
  given = jnp.zeros((*log_partition.shape[:3], v.shape[-1]))
  left = jnp.ones_like(log_partition)
  for level, out, to_siblings, within in passed[::-1]:
    given, left, log_partition = (
      level.spread(x) for x in (given, left, log_partition)
    )
    given = given + left * to_siblings * out
    left = left * within
  if self_term:
    values = _at_leaves(v, leaves).astype(jnp.float32)
    given += left * _repeated(values, q.shape[2])
  if planted.broken is not None:
    given = jnp.where(planted.broken[:, None, None, None], jnp.nan, given)
  out = jnp.where(leaves[..., None, None], given, 0.0)[:, :length]
  out = out.astype(q.dtype)
  if not return_log_partition:
    return out
  return out, log_partition[:, :length, :, 0]


def hierarchical_weights(
  q: Float[Array, "batch length heads dim"],
  k: Float[Array, "batch length k_heads dim"],
  tree: Tree,
  *,
  scale: float | None = None,
  self_term: bool = True,
  sibling_embeddings: Sequence[Float[Array, "places channels"]] | None = None,
) -> Float[Array, "batch heads length length"]:
  """Returns the weights theta of `hierarchical_attention` in float32.

  Of one value for each key, what comes out is the weights: it takes the square
  of the length. Arguments and errors are those of `hierarchical_attention`.
  """
  q, k = (x.astype(jnp.float32) for x in (q, k))
  one = jnp.eye(k.shape[1], dtype=jnp.float32)[None, :, None]
  v = jnp.broadcast_to(one, (k.shape[0], k.shape[1], 1, k.shape[1]))
  out = hierarchical_attention(
    q,
    k,
    v,
    tree,
    scale=scale,
    self_term=self_term,
    sibling_embeddings=sibling_embeddings,
    implementation="xla",
  )
  return out.swapaxes(1, 2)


def multiply_adds(
  length: int, branchings: Sequence[int], dim: int, v_dim: int = 0
) -> int:
  """Multiply-adds of a head's scores and weighted values, in a regular tree.

  A family of b nodes has b^2 scores, each with a product of `dim` channels and
  one of `v_dim`; with no branchings that is softmax attention. Means, which
  take a multiple of length * dim, and exponentials are not counted.

  Args:
    length: number of tokens.
    branchings: of `trees.regular`.
    dim: channels of a query.
    v_dim: channels of a value; 0 for `dim`.
  """
  window = math.prod(branchings)
  nodes = window * max(1, -(-length // window))
  total = 0
  for branching in (*branchings, nodes // window):
    total += nodes * branching * (dim + (v_dim or dim))
    nodes //= branching
  return total


def _at_leaves(x: Array, leaves) -> Array:
  """Returns [batch, leaves, ...] with zeros where there is no token."""
  more = leaves.shape[1] - x.shape[1]
  x = jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
  if isinstance(leaves, np.ndarray) and leaves.all():
    return x
  # Padding may hold anything, NaN too, of which no gradient may be made.
  return jnp.where(leaves[..., None, None], x, jnp.zeros_like(x))


def _with_embeddings(nodes, table, level, sizes, scale):
  """Adds channels to queries and keys whose product is that of embeddings."""
  q, k, v = nodes
  places = jnp.asarray(level.places)
  rows = jnp.take(table, places, axis=0, mode="fill", fill_value=jnp.nan)
  rows = jnp.where(jnp.asarray(sizes)[..., None] > 0, rows, 0.0)[:, :, None]

  def widened(x, rows):
    rows = jnp.broadcast_to(rows, (*x.shape[:3], rows.shape[-1]))
    return jnp.concatenate([x, rows.astype(x.dtype)], axis=-1)

  return widened(q, rows / scale), widened(k, rows), v


def _of_leaves(q: Array, k: Array, scale: float, self_term: bool) -> Array:
  """Returns F of the leaves, [batch, leaves, heads, 1]."""
  if not self_term:
    return jnp.full((*q.shape[:3], 1), -jnp.inf, jnp.float32)
  q, k = (x.astype(jnp.float32) for x in (q, k))
  return scale * (q * _repeated(k, q.shape[2])).sum(axis=-1, keepdims=True)


def _among_siblings(
  level: Level, nodes, sizes, **options
) -> tuple[Array, Array]:
  """Returns what nodes get of their siblings, and log sum_C |C| exp s(B, C).

  The first is [batch, nodes, heads, v_dim], a mean weighted by |C| exp s(B, C);
  the second [batch, nodes, heads, 1], -inf without siblings.
  """
  q, k, v = nodes
  batch, blocked = q.shape[0], level.blocks(q).shape[1]
  mask = ~masks.sliding_window(0, 0, offset=level.offset)
  bias, log_size = None, 0.0
  if isinstance(sizes, np.ndarray) and (sizes == sizes[0, 0]).all():
    log_size = math.log(sizes[0, 0])
  else:
    sizes = jnp.broadcast_to(sizes, q.shape[:2])
    parents = level.parents
    parents = jnp.zeros(q.shape[:2], int) if parents is None else parents
    # One is added so that what is beyond the row, 0, is like an empty node.
    there = level.around(jnp.where(sizes > 0, parents + 1, 0))
    families = [level.blocks(parents + 1), jnp.where(there > 0, there, -1)]
    mask &= masks.segments(
      *(x.reshape(batch * blocked, x.shape[2]) for x in families)
    )
    bias = jnp.log(jnp.maximum(level.around(sizes), 1.0))[:, :, None, None]
  result = dot_product_attention(
    level.blocks(q),
    level.around(k),
    level.around(v),
    bias=bias,
    mask=mask,
    return_log_sum_exp=True,
    **options,
  )
  lse = level.joined(result.log_sum_exp.swapaxes(-1, -2))[..., None]
  return level.joined(result.out).astype(jnp.float32), lse + log_size


def _log_add(x: Array, y: Array) -> Array:
  """Returns log(exp x + exp y), where both may be -inf."""
  largest = jnp.maximum(x, y)
  largest = jax.lax.stop_gradient(
    jnp.where(jnp.isfinite(largest), largest, 0.0)
  )
  total = jnp.exp(x - largest) + jnp.exp(y - largest)
  empty = total == 0
  log = largest + jnp.log(jnp.where(empty, 1.0, total))
  return jnp.where(empty, -jnp.inf, log)


def _shares(own: Array, siblings: Array, both: Array) -> tuple[Array, Array]:
  """Returns which parts of a node's mass go to its siblings and stay in it."""
  both = jnp.where(jnp.isfinite(both), both, 0.0)
  return jnp.exp(siblings - both), jnp.exp(own - both)


def _parents(level: Level, nodes, log_sum: Array, sizes):
  """Returns means of queries, keys, values and logarithms, and new sizes."""
  total = level.total(sizes)
  each = sizes[..., None, None]
  safe = (total + (total == 0))[..., None, None]
  nodes = tuple(level.total(each * x.astype(jnp.float32)) / safe for x in nodes)
  # An empty node may have a sum of -inf.
  log_sum = jnp.where(each > 0, log_sum, 0.0)
  return nodes, level.total(each * log_sum) / safe, total


def _repeated(x: Array, heads: int) -> Array:
  return jnp.repeat(x, heads // x.shape[2], axis=2)


def _check_embeddings(embeddings, levels) -> None:
  if embeddings is None:
    return
  if len(embeddings) != len(levels):
    raise ValueError(
      f"sibling_embeddings has {len(embeddings)} arrays; the tree has "
      f"{len(levels)} levels, and the root's children are the last"
    )
  for i, (table, level) in enumerate(zip(embeddings, levels, strict=True)):
    checks.floating(f"sibling_embeddings[{i}]", table)
    rows = level.width
    if table.ndim != 2 or table.shape[0] < rows:
      raise ValueError(
        f"sibling_embeddings[{i}] has shape {table.shape}; it must be [places, "
        f"channels] with a row for each of {rows} places"
      )


def _check(q, k, v, tree, scale, self_term, return_log_partition) -> None:
  checks.same_floats(q=q, k=k, v=v)
  checks.instance("tree", tree, Tree, "attention.trees")
  checks.flag("self_term", self_term)
  checks.flag("return_log_partition", return_log_partition)
  if scale is not None:
    checks.number("scale", scale, above=0.0)
  for name, x, dim in (("k", k, q.shape[-1]), ("v", v, v.shape[-1])):
    if (*x.shape[:2], x.shape[-1]) != (*q.shape[:2], dim) or (
      q.shape[2] % x.shape[2]
    ):
      raise ValueError(
        f"{name} has shape {x.shape}; q of shape {q.shape} needs "
        f"[{q.shape[0]}, {q.shape[1]}, heads, {dim}] with heads that divide "
        f"{q.shape[2]}"
      )
