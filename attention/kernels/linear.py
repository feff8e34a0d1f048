"""Linear attention on TPUs: the features live in VMEM only.

One kernel computes out_i = f(a_i) . sum_j g(b_j) h(c_j)^T over all j, j <= i or
j >= i, with the memory in scratch. Its three gradients are of the same form, so
it is also its own backward pass: nothing of size length x features x v_dim, and
no features, ever reach HBM.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention import features
from attention.kernels.tpu import unsupported_arrays

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
  out = _sums((feature_map, causal, interpret), *flat)
  return out.reshape(batch, heads, length, -1).transpose(0, 2, 1, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(options, q, k, terms):
  phi, causal, interpret = options
  order = "before" if causal else "all"
  maps = (phi, phi, features.identity)
  return _read(q, k, terms, maps, order, jnp.float32, interpret)


def _sums_forward(options, q, k, terms):
  return _sums(options, q, k, terms), (q, k, terms)


def _sums_backward(options, residuals, bar):
  phi, causal, interpret = options
  q, k, terms = residuals
  same = features.identity
  before, after = ("before", "after") if causal else ("all", "all")
  call = functools.partial(_read, interpret=interpret)
  q_bar = call(bar, terms, k, (same, same, phi), before, q.dtype, pull=(phi, q))
  k_bar = call(terms, bar, q, (same, same, phi), after, k.dtype, pull=(phi, k))
  terms_bar = call(k, q, bar, (phi, phi, same), after, terms.dtype)
  return q_bar, k_bar, terms_bar


_sums.defvjp(_sums_forward, _sums_backward)


def _read(a, b, c, maps, order, dtype, interpret, pull=None):
  """Returns f(a_i) . sum_j g(b_j) h(c_j)^T, or its pullback through a map.

  Args:
    a: [rows, q_len, width]; b, c: [rows, kv_len, ...].
    maps: f, g and h.
    order: "all", "before" (j <= i) or "after" (j >= i).
    dtype: of the result.
    interpret: whether Pallas's interpreter runs the kernel.
    pull: (phi, x [rows, q_len, dim]): return the vector-Jacobian product of
      phi at x with the result instead.
  """
  rows, q_len, _ = a.shape
  kv_len = b.shape[1]
  scan = order != "all"
  most = 256 if scan else 512
  block = min(most, pl.cdiv(max(q_len, kv_len), 16) * 16)
  q_blocks, kv_blocks = pl.cdiv(q_len, block), pl.cdiv(kv_len, block)

  def padded(x, blocks):
    return jnp.pad(x, ((0, 0), (0, blocks * block - x.shape[1]), (0, 0)))

  arrays = [padded(a, q_blocks), padded(b, kv_blocks), padded(c, kv_blocks)]
  if pull is not None:
    arrays.append(padded(pull[1], q_blocks))
  if order == "before":
    query = key = lambda row, i: (row, i, 0)
  elif order == "after":
    query = key = lambda row, i: (row, q_blocks - 1 - i, 0)
  else:
    # First all keys, then all queries: the blocks not in use stay put.
    query = lambda row, i: (row, jnp.maximum(i - kv_blocks, 0), 0)
    key = lambda row, i: (row, jnp.minimum(i, kv_blocks - 1), 0)
  indices = (query, key, key, query)

  def spec(x, index):
    return pl.BlockSpec((1, block, x.shape[-1]), index)

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
  moved = sum(x.size * x.dtype.itemsize for x in (*arrays, out_shape))
  out = pl.pallas_call(
    functools.partial(
      _kernel,
      maps=maps,
      order=order,
      kv_blocks=kv_blocks,
      pull=None if pull is None else pull[0],
    ),
    name=f"linear_attention_{order}",
    out_shape=out_shape,
    grid=(rows, q_blocks if scan else q_blocks + kv_blocks),
    in_specs=[
      spec(x, index) for x, index in zip(arrays, indices, strict=False)
    ],
    out_specs=spec(out_shape, query),
    scratch_shapes=[pltpu.VMEM(memory, jnp.float32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=VMEM_LIMIT,
    ),
    cost_estimate=pl.CostEstimate(
      flops=rows * products, bytes_accessed=moved, transcendentals=0
    ),
    interpret=interpret,
  )(*arrays)
  return out[:, :q_len]


def _kernel(*refs, maps, order, kv_blocks, pull):
  a_ref, b_ref, c_ref, *point_ref, out_ref, memory_ref = refs
  f, g, h = maps
  step = pl.program_id(1)

  @pl.when(step == 0)
  def _():
    memory_ref[...] = jnp.zeros_like(memory_ref)

  def load(ref, phi):
    return phi(ref[0].astype(jnp.float32))

  def store(out):
    if pull is not None:
      point = point_ref[0][0].astype(jnp.float32)
      (out,) = jax.vjp(pull, point)[1](out)
    out_ref[0] = out.astype(out_ref.dtype)

  if order == "all":

    @pl.when(step < kv_blocks)
    def _():
      memory_ref[...] += _dot(load(b_ref, g), load(c_ref, h), 0, 0)

    @pl.when(step >= kv_blocks)
    def _():
      store(_dot(load(a_ref, f), memory_ref[...], 1, 0))

    return
  a, b, c = load(a_ref, f), load(b_ref, g), load(c_ref, h)
  weights = _dot(a, b, 1, 1)
  i = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 0)
  j = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 1)
  seen = j <= i if order == "before" else j >= i
  weights = jnp.where(seen, weights, 0.0)
  out = _dot(weights, c, 1, 0) + _dot(a, memory_ref[...], 1, 0)
  memory_ref[...] += _dot(b, c, 0, 0)
  store(out)


def _dot(x, y, x_axis, y_axis):
  return jax.lax.dot_general(
    x,
    y,
    (((x_axis,), (y_axis,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
