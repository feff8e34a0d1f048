"""Linear attention on TPUs: the features live in VMEM only.

One kernel computes out_i = f(a_i) . sum_j g(b_j) h(c_j)^T over all j, j <= i or
j >= i, with the memory in scratch. Its three gradients are of the same form
(`linear_sums`): nothing of size length x features x v_dim, and no features,
ever reach HBM.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from attention import features
from attention.kernels import linear_sums, tpu
from attention.kernels.tpu import Blocked, unsupported_arrays

# Maps that Mosaic lowers, with the vector-Jacobian product JAX derives.
MAPS = (
  features.identity,
  features.relu,
  features.relu_epsilon,
  features.elu_plus_one,
  features.sigmoid,
  features.softmax,
  features.taylor,
)
VMEM_LIMIT = 64 * 2**20


class _Inputs(NamedTuple):
  """Blocks [1, block, width] of a, b and c, and of where a map is pulled back.

  Rows are pairs of batch and head. `point` is None without a map.
  """

  a: Any
  b: Any
  c: Any
  point: Any


class _Outputs(NamedTuple):
  out: Any


class _Scratch(NamedTuple):
  """The sum so far of g(b_j) h(c_j)^T, which goes on along a row of the grid.

  [features of b, features of c], float32: it is the only thing that grows with
  the features, and it never leaves VMEM.
  """

  memory: Any


def unsupported(
  q, k, v, *, feature_map, decay, state, return_state
) -> str | None:
  """Says why the kernel cannot take these arguments, or returns None."""
  if feature_map not in MAPS:
    return (
      f"feature_map is {feature_map!r}; the kernel has "
      f"{', '.join(f.__name__ for f in MAPS)}"
    )
  if decay is not None:
    return "decay is given; the kernel's memory does not decay"
  if state is not None or return_state:
    return "a state is passed on; the kernel keeps its memory in scratch"
  reason = unsupported_arrays(q, k, v)
  if reason is not None:
    return reason
  if max(q.shape[-1], v.shape[-1]) > 256:
    return f"heads are wider than 256: q has {q.shape[-1]}, v {v.shape[-1]}"
  if feature_map is features.taylor and q.shape[-1] > 32:
    return f"q has dimension {q.shape[-1]}; Taylor features need at most 32"
  return None


def weighted_sums(q, k, terms, *, feature_map, causal, interpret=False):
  """Returns sum_j phi(q_i) . phi(k_j) terms_j, float32.

  Args:
    q: [batch, q_len, heads, dim].
    k: [batch, kv_len, heads, dim].
    terms: [batch, kv_len, heads, width]; zero rows for padding.
    feature_map: phi, one of MAPS.
    causal: whether only j <= i count.
    interpret: whether Pallas's interpreter runs the kernel.
  """
  batch, length, heads, _ = q.shape
  flat = []
  for x in (q, k, terms):
    # [B, N, H, D] -> [B H, N, D]
    x = x.transpose(0, 2, 1, 3)
    flat.append(x.reshape(batch * heads, *x.shape[2:]))
  options = (("interpret", interpret),)
  out = linear_sums.weighted_sums(_read, options, feature_map, causal, *flat)
  return out.reshape(batch, heads, length, -1).transpose(0, 2, 1, 3)


def _read(a, b, c, maps, order, dtype, pull=None, *, interpret):
  """Returns f(a_i) . sum_j g(b_j) h(c_j)^T, or its pullback through a map.

  Args:
    a: [rows, q_len, width]; b, c: [rows, kv_len, ...].
    maps: f, g and h.
    order: "all", "before" (j <= i) or "after" (j >= i).
    dtype: of the result.
    pull: (phi, x [rows, q_len, dim]): return the vector-Jacobian product of
      phi at x with the result instead.
    interpret: whether Pallas's interpreter runs the kernel.
  """
  rows, q_len, _ = a.shape
  kv_len = b.shape[1]
  scan = order != "all"
  # A scan makes block x block scores a block besides: shorter ones cost less.
  most = 256 if scan else 512
  block = min(most, pl.cdiv(max(q_len, kv_len), 16) * 16)
  q_blocks, kv_blocks = pl.cdiv(q_len, block), pl.cdiv(kv_len, block)

  # Zeros on both sides of each product, so that padding adds nothing: at least
  # one of b and c is zero as it is, without a map that could make more of it.
  def padded(x, blocks):
    return jnp.pad(x, ((0, 0), (0, blocks * block - x.shape[1]), (0, 0)))

  if order == "before":
    query = key = lambda row, i: (row, i, 0)
  elif order == "after":
    # From the end: the memory then has what comes after.
    query = key = lambda row, i: (row, q_blocks - 1 - i, 0)
  else:
    # First all keys, then all queries: the blocks not in use stay put.
    query = lambda row, i: (row, jnp.maximum(i - kv_blocks, 0), 0)
    key = lambda row, i: (row, jnp.minimum(i, kv_blocks - 1), 0)

  def blocked(x, index):
    return Blocked(x, pl.BlockSpec((1, block, x.shape[-1]), index))

  wide = [
    jax.eval_shape(f, jax.ShapeDtypeStruct((block, x.shape[-1]), jnp.float32))
    for f, x in zip(maps, (a, b, c), strict=True)
  ]
  memory = (wide[1].shape[-1], wide[2].shape[-1])
  out_width = memory[1] if pull is None else pull[1].shape[-1]
  out_shape = jax.ShapeDtypeStruct((rows, q_blocks * block, out_width), dtype)
  products = 2 * memory[0] * memory[1] * (q_len + kv_len)
  if scan:
    products += 2 * block * sum(memory) * q_len
  point = None if pull is None else blocked(padded(pull[1], q_blocks), query)
  results = tpu.call(
    functools.partial(
      _kernel,
      maps=maps,
      order=order,
      kv_blocks=kv_blocks,
      pull=None if pull is None else pull[0],
    ),
    f"linear_attention_{order}",
    grid=(rows, q_blocks if scan else q_blocks + kv_blocks),
    inputs=_Inputs(
      blocked(padded(a, q_blocks), query),
      blocked(padded(b, kv_blocks), key),
      blocked(padded(c, kv_blocks), key),
      point,
    ),
    outputs=_Outputs(blocked(out_shape, query)),
    scratch=_Scratch(memory),
    # Heads know nothing of each other; blocks of one follow in order.
    parallel=1,
    vmem_bytes=VMEM_LIMIT,
    flops=rows * products,
    transcendentals=0,
    interpret=interpret,
  )
  return results.out[:, :q_len]


def _kernel(inputs, outputs, scratch, *, maps, order, kv_blocks, pull):
  f, g, h = maps
  memory_ref = scratch.memory
  step = pl.program_id(1)

  @pl.when(step == 0)
  def _():
    memory_ref[...] = jnp.zeros_like(memory_ref)

  def load(ref, phi):
    # [1, block, width] -> [block, features]
    return phi(ref[0].astype(jnp.float32))

  def store(out):
    if pull is not None:
      point = inputs.point[0].astype(jnp.float32)
      (out,) = jax.vjp(pull, point)[1](out)
    outputs.out[0] = out.astype(outputs.out.dtype)

  if order == "all":

    @pl.when(step < kv_blocks)
    def _():
      memory_ref[...] += _dot(load(inputs.b, g), load(inputs.c, h), 0, 0)

    @pl.when(step >= kv_blocks)
    def _():
      store(_dot(load(inputs.a, f), memory_ref[...], 1, 0))

    return
  a, b, c = load(inputs.a, f), load(inputs.b, g), load(inputs.c, h)
  # Within the block by masked scores [i, j], beyond it by the memory. The own
  # block is added to that only when it has been read.
  weights = _dot(a, b, 1, 1)
  i = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 0)
  j = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 1)
  seen = j <= i if order == "before" else j >= i
  weights = jnp.where(seen, weights, 0.0)
  out = _dot(weights, c, 1, 0) + _dot(a, memory_ref[...], 1, 0)
  memory_ref[...] += _dot(b, c, 0, 0)
  store(out)


def _dot(x, y, x_axis, y_axis):
  """Contracts an axis of each, in full float32: sums here are over thousands.

  A memory is the sum over all positions, so that products rounded to bfloat16
  would show.
  """
  return jax.lax.dot_general(
    x,
    y,
    (((x_axis,), (y_axis,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
