"""One step of p-Laplacian message passing on a graph that attention makes.

"p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models"
(arXiv 2312.10613), as the released code computes it. Weights A of attention are
edges, and an edge between features F_i and F_j counts

  M_ij = A_ij g_ij^(p - 2),
  g_ij = || sqrt(A_ij + e) (F_i - F_j) + e ||, e = 1e-8,

so that with p < 2 alike features count more and with p = 2 all is as attention
says. With alpha_i = 1 / (sum_j M_ij + 2 mu / p) the result is alpha M F, and on
a graph of one kind of nodes beta F besides, beta = alpha 2 mu / p. There is one
step, and no degrees normalise it.

Of a node and itself the difference is 0, and g_ii = e sqrt(dim): with p = 1.25
and 8 channels that edge weighs 458,502 times what attention says, so such a
layer changes little but where A_ii is near 0.

All differences of pairs are made: for hundreds of tokens, not for thousands.
"""

import jax
import jax.numpy as jnp
import numpy as np

from attention import checks

_EPSILON = 1e-8


def aggregate(
  weights: jax.Array,
  features: jax.Array,
  exponent: float | jax.Array,
  mu: float | jax.Array,
  *,
  self_edges: bool = True,
) -> jax.Array:
  """Passes messages between nodes of one kind, as of self-attention.

  Args:
    weights: A, [..., nodes, nodes], of receiving nodes and of sending ones.
    features: F, [..., nodes, dim].
    exponent: p, above 1 and at most 2, a number or a scalar.
    mu: how much of its own a node keeps, positive, likewise.
    self_edges: whether a node sends to itself, as in the released code.

  Returns:
    [..., nodes, dim], of the dtype of features; computed in float32 at least.

  Raises:
    ValueError: if shapes do not fit, or p or mu is a number out of its range.
  """
  _check(weights, features, features, exponent, mu)
  nodes = features.shape[-2]
  same = np.eye(nodes, dtype=bool)
  a, f = (_wide(x) for x in (weights, features))
  if not self_edges:
    a = jnp.where(_like(same, a), 0, a)
  # Where there is no difference there is no gradient either. Without this two
  # very large ones would cancel.
  edges = _edges(a, _differences(f, f, same), exponent)
  keep = 2 * mu / exponent
  alpha = 1 / (edges.sum(-1, keepdims=True) + keep)
  out = alpha * (edges @ f) + alpha * keep * f
  return out.astype(features.dtype)


def aggregate_bipartite(
  weights: jax.Array,
  queries: jax.Array,
  values: jax.Array,
  exponent: float | jax.Array,
  mu: float | jax.Array,
) -> jax.Array:
  """Passes messages from values to queries, as of cross-attention.

  The graph has both as nodes, and no edges among those of a kind. The result is
  alpha M F alone: the term that keeps a node's own is a block beside the
  diagonal of a diagonal matrix, in the released code too, and so zero.

  Args:
    weights: A, [..., queries, values]; rows need not sum to 1.
    queries: their features, [..., queries, dim].
    values: likewise.
    exponent: as of `aggregate`.
    mu: likewise.

  Returns:
    [..., queries, dim], of the dtype of queries.

  Raises:
    ValueError: as `aggregate`.
  """
  _check(weights, queries, values, exponent, mu)
  a, q, v = (_wide(x) for x in (weights, queries, values))
  edges = _edges(a, _differences(q, v, None), exponent)
  alpha = 1 / (edges.sum(-1, keepdims=True) + 2 * mu / exponent)
  return (alpha * (edges @ v)).astype(queries.dtype)


def adaptive_average(x: jax.Array, length: int, axis: int) -> jax.Array:
  """Averages along an axis down to a length, as PyTorch's adaptive pooling.

  Element i of n becomes the mean from floor(i n / length) up to, not including,
  ceil((i + 1) n / length); neighbours may share an element.

  Raises:
    ValueError: if the axis is shorter.
  """
  n = x.shape[axis]
  checks.whole("length", length)
  if not 1 <= length <= n:
    raise ValueError(
      f"length is {length}; of an axis of {n} there are 1 to {n} averages"
    )
  shares = np.zeros((n, length), np.float32)
  for i in range(length):
    begin, end = i * n // length, -(-(i + 1) * n // length)
    shares[begin:end, i] = 1 / (end - begin)
  moved = jnp.moveaxis(x, axis, -1) @ jnp.asarray(shares, x.dtype)
  return jnp.moveaxis(moved, -1, axis)


def _differences(a, b, same):
  """[..., rows, columns, dim], zero where `same` [rows, columns] says so."""
  apart = a[..., :, None, :] - b[..., None, :, :]
  return (
    apart
    if same is None
    else jnp.where(_like(same[..., None], apart), 0, apart)
  )


def _edges(a, apart, exponent):
  """M, [..., rows, columns]."""
  steps = jnp.sqrt(a + _EPSILON)[..., None] * apart + _EPSILON
  lengths = jnp.sqrt(jnp.square(steps).sum(-1))
  return a * lengths ** (exponent - 2)


def _like(mask, x):
  return mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check(weights, queries, values, exponent, mu):
  wanted = (*queries.shape[:-1], values.shape[-2])
  fits = queries.ndim >= 2 and queries.ndim == values.ndim
  if (
    not fits
    or weights.shape != wanted
    or values.shape[:-2] != queries.shape[:-2]
    or values.shape[-1] != queries.shape[-1]
  ):
    raise ValueError(
      f"weights have shape {weights.shape}, and features {queries.shape} and "
      f"{values.shape}; they must be [..., queries, values], [..., queries, "
      "dim] and [..., values, dim]"
    )
  for name, value, low, high in (
    ("exponent", exponent, 1, 2),
    ("mu", mu, 0, float("inf")),
  ):
    if isinstance(value, int | float) and not low < value <= high:
      raise ValueError(
        f"{name} is {value}; it must be above {low}"
        + (f" and at most {high}" if high == 2 else "")
      )
