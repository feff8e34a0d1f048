"""Few of the values, those that have the largest weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention import checks


def apply_top_weights(
  weights: Float[Array, "*batch heads q_len kv_len"],
  v: Float[Array, "*batch kv_len v_heads v_dim"],
  *,
  count: int,
  renormalize: bool = False,
) -> Float[Array, "*batch q_len heads v_dim"]:
  """Returns `weights v` over the largest weights of each query alone.

  Selective V of DiffQKV (Sigma, arXiv 2501.13629, section 2): only these rows
  of the values are read. The paper keeps 100 and does not say whether they are
  made to add up to one again; both are here.

  Args:
    weights: attention map [..., heads, q_len, kv_len].
    v: values [..., kv_len, v_heads, v_dim]; v_heads divides heads.
    count: how many weights are kept; all if there are no more.
    renormalize: whether those that are kept are divided by their sum.

  Returns:
    [..., q_len, heads, v_dim] in the dtype of `v`, accumulated in float32.

  Raises:
    ValueError: if the shapes do not agree or `count` is not 1 or more.
  """
  checks.whole("count", count, 1)
  checks.flag("renormalize", renormalize)
  for name, x in (("weights", weights), ("v", v)):
    checks.floating(name, x)
  *lead, heads, q_len, kv_len = weights.shape
  if [*v.shape[:-3], v.shape[-3]] != [*lead, kv_len] or heads % v.shape[-2]:
    raise ValueError(
      f"v has shape {v.shape}; weights of shape {weights.shape} need values "
      "[..., kv_len, v_heads, v_dim] with the same leading axes and kv_len, "
      "and v_heads that divides heads"
    )
  # [..., heads, q_len, count]
  kept, places = jax.lax.top_k(weights, min(count, kv_len))
  if renormalize:
    total = kept.sum(axis=-1, keepdims=True)
    # Of a query that sees nothing.
    kept = kept / jnp.where(total == 0, 1, total)
  v_heads, v_dim = v.shape[-2:]
  # Rows of all queries that share a head of values.
  places = places.reshape(*lead, v_heads, -1, 1)
  rows = jnp.take_along_axis(v.swapaxes(-3, -2), places, axis=-2)
  rows = rows.reshape(*lead, heads, q_len, -1, v_dim)
  out = jnp.einsum(
    "...hqk,...hqkd->...qhd",
    kept.astype(v.dtype),
    rows,
    preferred_element_type=jnp.float32,
  )
  return out.astype(v.dtype)
