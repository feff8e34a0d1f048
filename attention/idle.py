"""Queries and keys that meet nobody, which may hold anything."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attention.mask_base import Mask


def emptied(
  q: Array, k: Array, v: Array, mask: Mask | None
) -> tuple[Array, Array, Array]:
  """Puts zeros for queries and keys that the mask knows to meet nobody.

  Their weights are zero, but zero times NaN is NaN, and padding may hold any.

  Args:
    q: [batch, q_len, heads, dim].
    k: [batch, kv_len, k_heads, dim].
    v: [batch, kv_len, v_heads, v_dim].
    mask: which keys are seen, or None.
  """
  batch, q_len = q.shape[:2]
  if mask is None or 0 in (batch, q_len, k.shape[1]):
    return q, k, v
  idle_queries, idle_keys = mask.idle(q_len, k.shape[1])
  return (
    _emptied(q, idle_queries),
    _emptied(k, idle_keys),
    _emptied(v, idle_keys),
  )


def _emptied(x: Array, idle: np.ndarray | Array) -> Array:
  if isinstance(idle, np.ndarray) and not idle.any():
    return x
  # [batch or 1, heads or 1, length], of which a head of `x` serves several.
  idle = jnp.asarray(idle)
  if idle.shape[1] > 1:
    shape = (idle.shape[0], x.shape[2], -1, x.shape[1])
    idle = idle.reshape(shape).all(axis=2)
  return jnp.where(idle.swapaxes(1, 2)[..., None], jnp.zeros_like(x), x)
