"""The memory of causal linear attention, many positions at a time.

M_i = exp(decay_i) M_(i-1) + phi(k_i) terms_i^T, of which query i reads
phi(q_i) M_i. Within a chunk of positions this is a matrix product.
"""

import jax
import jax.numpy as jnp
from jax import Array


def run(phi_q, phi_k, terms, decay, memory, chunk_size):
  """Returns what each query reads of the memory, and the memory at the end.

  Args:
    phi_q: features of queries [B, N, H, F].
    phi_k: features of keys, likewise.
    terms: what the memory takes in [B, N, H, V].
    decay: logarithm of what is left of the memory, [B or 1, N, H or 1, F or 1].
    memory: at the start [B, H, F, V].
    chunk_size: positions that are taken at a time.
  """
  length = phi_k.shape[1]
  chunk_size = max(1, min(chunk_size, length))
  chunks = -(-length // chunk_size)

  def cut(x):
    # [B, N, ...] -> [chunks, B, C, ...]; the memory keeps still in the padding.
    extra = chunks * chunk_size - length
    x = jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(x.shape[0], chunks, chunk_size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  def step(memory, xs):
    return _chunk(memory, *xs)

  memory, out = jax.lax.scan(
    step, memory, tuple(map(cut, (phi_q, phi_k, terms, decay)))
  )
  # [chunks, B, C, H, V] -> [B, N, H, V]
  out = jnp.moveaxis(out, 0, 1)
  out = out.reshape(out.shape[0], chunks * chunk_size, *out.shape[3:])
  return out[:, :length], memory


def _chunk(memory, phi_q, phi_k, terms, decay):
  """Takes a chunk of C positions: the memory after it, and what is read."""
  # What is left at i of what came in at j, [B, i, j, H, F], and of the memory
  # at the start, [B, i, H, F].
  between = _left_between(decay)
  since_start = jnp.exp(jnp.cumsum(decay, axis=1))
  if between.shape[-1] == 1:
    weights = dot("bihf,bjhf->bijh", phi_q, phi_k) * between[..., 0]
  else:
    weights = dot("bihf,bjhf,bijhf->bijh", phi_q, phi_k, between)
  out = dot("bijh,bjhv->bihv", weights, terms)
  out = out + dot("bihf,bhfv->bihv", phi_q * since_start, memory)
  memory = memory * since_start[:, -1, :, :, None]
  taken_in = dot("bjhf,bjhv->bhfv", phi_k * between[:, -1], terms)
  return memory + taken_in, out


def _left_between(decay: Array) -> Array:
  """Returns exp(decay_(j+1) + ... + decay_i) for j <= i, zero for others.

  Each sum is added up by itself. The difference of two sums from the start
  would be NaN after a decay of -inf, and has no digits left after a strong one.

  Args:
    decay: [B, C, H, F].

  Returns:
    [B, i, j, H, F].
  """
  chunk = decay.shape[1]
  i = jnp.arange(chunk)[None, :, None, None, None]
  j = jnp.arange(chunk)[None, None, :, None, None]
  sums = jnp.cumsum(jnp.where(i > j, decay[:, :, None], 0.0), axis=1)
  return jnp.exp(jnp.where(i >= j, sums, -jnp.inf))


def dot(formula: str, *arrays: Array) -> Array:
  return jnp.einsum(formula, *arrays, precision=jax.lax.Precision.HIGHEST)
