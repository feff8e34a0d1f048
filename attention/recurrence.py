"""The memory of causal linear attention, many positions at a time.

M_i = exp(decay_i) M_(i-1) + phi(k_i) terms_i^T, of which query i reads
phi(q_i) M_i. Within a chunk of positions this is a matrix product.

By the delta rule a position adds what lacks to its terms,

    u_i = beta_i (terms_i - (exp(decay_i) M_(i-1))^T phi(k_i)),

in place of them. Within a chunk each u_i depends on those before it through
the overlaps of keys, a triangular system; its solution is the WY form of the
product of the factors I - beta_i phi(k_i) phi(k_i)^T (arXiv 2406.06484).
"""

import jax
import jax.numpy as jnp
from jax import Array


def run(phi_q, phi_k, terms, decay, memory, chunk_size, write_strength=None):
  """Returns what each query reads of the memory, and the memory at the end.

  Args:
    phi_q: features of queries [B, N, H, F].
    phi_k: features of keys, likewise.
    terms: what the memory takes in [B, N, H, V].
    decay: logarithm of what is left of the memory, [B or 1, N, H or 1, F or 1].
    memory: at the start [B, H, F, V].
    chunk_size: positions that are taken at a time.
    write_strength: beta of the delta rule [B or 1, N, H or 1]; None to add the
      terms as they are.
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

  arrays = [phi_q, phi_k, terms, decay]
  if write_strength is not None:
    arrays.append(write_strength.astype(jnp.float32))
  memory, out = jax.lax.scan(step, memory, tuple(map(cut, arrays)))
  # [chunks, B, C, H, V] -> [B, N, H, V]
  out = jnp.moveaxis(out, 0, 1)
  out = out.reshape(out.shape[0], chunks * chunk_size, *out.shape[3:])
  return out[:, :length], memory


def _chunk(memory, phi_q, phi_k, terms, decay, beta=None):
  """Takes a chunk of C positions: the memory after it, and what is read."""
  # What is left at i of what came in at j, [B, i, j, H, F], and of the memory
  # at the start, [B, i, H, F].
  between = _left_between(decay)
  since_start = jnp.exp(jnp.cumsum(decay, axis=1))
  if beta is not None:
    held = dot("bihf,bhfv->bihv", phi_k * since_start, memory)
    overlaps = _overlaps(phi_k, phi_k, between) * beta[:, :, None]
    terms = _solved(overlaps, (terms - held) * beta[..., None])
  out = dot("bijh,bjhv->bihv", _overlaps(phi_q, phi_k, between), terms)
  out = out + dot("bihf,bhfv->bihv", phi_q * since_start, memory)
  memory = memory * since_start[:, -1, :, :, None]
  taken_in = dot("bjhf,bjhv->bhfv", phi_k * between[:, -1], terms)
  return memory + taken_in, out


def _overlaps(left, right, between) -> Array:
  """Returns left_i . right_j by what is left between them, [B, i, j, H]."""
  if between.shape[-1] == 1:
    return dot("bihf,bjhf->bijh", left, right) * between[..., 0]
  return dot("bihf,bjhf,bijhf->bijh", left, right, between)


def _solved(overlaps, right) -> Array:
  """Returns u with u_i + sum_(j < i) overlaps_ij u_j = right_i.

  Args:
    overlaps: [B, i, j, H], of which j < i are read.
    right: [B, C, H, V].
  """
  lower = jnp.tril(jnp.moveaxis(overlaps, 3, 1), -1)
  return dot("bhij,bjhv->bihv", _inverse(lower), right)


@jax.custom_jvp
def _inverse(lower: Array) -> Array:
  """Returns (I + lower)^-1 of strictly lower triangles [..., C, C].

  Inverses of diagonal blocks are joined to those of twice their size, for all
  blocks at once by two products of whole matrices: log2(C) steps that feed
  matrix units, where forward substitution takes C steps. Its entries are no
  larger than those of the inverse, at most 1 for the delta rule with keys of
  unit norm, whereas powers of `lower` reach 10^17 where 64 keys are the same.
  """
  size = lower.shape[-1]
  inverse = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
  block = 1
  while block < size:
    number = jnp.arange(size) // block
    row, column = number[:, None], number[None, :]
    # Rows of the second and columns of the first of each pair of blocks.
    below = (row // 2 == column // 2) & (row > column)
    part = jnp.where(jnp.broadcast_to(below, lower.shape), lower, 0.0)
    if block > 1:
      part = _matmul(_matmul(inverse, part), inverse)
    inverse = inverse - part
    block *= 2
  return inverse


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
  inverse = _inverse(*primals)
  return inverse, -_matmul(_matmul(inverse, *tangents), inverse)


def _matmul(a: Array, b: Array) -> Array:
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


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
