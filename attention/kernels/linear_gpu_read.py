"""Linear attention on NVIDIA GPUs: what queries read, and its gradient."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention import features
from attention.kernels import linear_gpu_memory as memories
from attention.kernels import linear_gpu_tiles as tiles
from attention.kernels import triton
from attention.kernels.linear_gpu_memory import Plan
from attention.kernels.linear_gpu_tiles import CHUNK


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def read(plan: Plan, keys: tuple[int, int], q, memory, lengths) -> jax.Array:
  """Returns what queries read of a memory, normalised, like `q`.

  Args:
    plan: the plan.
    keys: number of keys, and channels of their values.
    q: [batch, tokens, heads, dim].
    memory: what `make` returned.
    lengths: as there.

  Returns:
    [batch, tokens, heads, v_dim].
  """
  batch, length, heads, _ = q.shape
  out = jax.ShapeDtypeStruct((batch, length, heads, keys[1]), q.dtype)
  return memories.call(
    plan,
    functools.partial(_read_kernel, kv_len=keys[0]),
    "linear_attention_read",
    grid=(pl.cdiv(length, CHUNK), heads, batch),
    out_shape=out,
    products=length * batch * heads * memory.shape[2] * memory.shape[3],
    num_warps=4,
  )(q, memory, lengths)


def _read_kernel(q_ref, memory_ref, lengths_ref, out_ref, *, plan, kv_len):
  chunk, head, batch = map(pl.program_id, range(3))
  rows = tiles.rows_of(chunk)
  queries = tiles.load(q_ref, batch, rows, head, plan.feature_map)
  at = batch, head
  sums, weight = _answers(plan, queries, memory_ref, at, q_ref, out_ref)
  count = _count(lengths_ref, batch, kv_len)
  normalize = _normalize(plan, count, q_ref.shape[3])
  out = []
  for x, column in zip(sums, tiles.pieces(out_ref), strict=True):
    total = memories.load_totals(plan, memory_ref, at, column)
    out.append(normalize(x, weight, total))
  tiles.store(out_ref, batch, rows, head, out)


def _read_forward(plan, keys, *arrays):
  return read(plan, keys, *arrays), arrays


def _read_backward(plan, keys, arrays, bar):
  q, memory, lengths = arrays
  batch, length, heads, _ = q.shape
  products = length * batch * heads * memory.shape[2] * memory.shape[3]
  q_bar, weight_bar = memories.call(
    plan,
    functools.partial(_queries_kernel, kv_len=keys[0]),
    "linear_attention_read_backward_queries",
    grid=(pl.cdiv(length, CHUNK), heads, batch),
    out_shape=(
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((batch, length, heads), jnp.float32),
    ),
    products=2 * products,
  )(q, memory, lengths, bar)
  parts = memories.count_parts(batch * heads, length)
  shape = (batch, heads, parts, *memory.shape[2:])
  memory_bar = memories.call(
    plan,
    functools.partial(_memory_kernel, kv_len=keys[0]),
    "linear_attention_read_backward_memory",
    grid=(parts, heads, batch),
    out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
    products=products,
  )(q, memory, lengths, bar, weight_bar)
  return q_bar, memory_bar.sum(2), None


def _queries_kernel(
  q_ref,
  memory_ref,
  lengths_ref,
  bar_ref,
  q_bar_ref,
  weight_bar_ref,
  *,
  plan,
  kv_len,
):
  chunk, head, batch = map(pl.program_id, range(3))
  at = batch, head
  count = _count(lengths_ref, batch, kv_len)
  normalize = _normalize(plan, count, q_ref.shape[3])
  rows = tiles.rows_of(chunk)
  queries, pulls = memories.load_mapped(plan, q_ref, batch, rows, head, None)
  bars = tiles.load(bar_ref, batch, rows, head, features.identity)
  sums, weight = _answers(plan, queries, memory_ref, at, q_ref, bar_ref)
  weight_bar = jnp.zeros_like(weight)
  read_bars = []
  for j, column in enumerate(tiles.pieces(bar_ref)):
    total = memories.load_totals(plan, memory_ref, at, column)
    _, pull = jax.vjp(normalize, sums[j], weight, total)
    sums_bar, more, _ = pull(bars[j])
    weight_bar += more
    read_bars.append(sums_bar)
  queries_bar = []
  for pull, row in zip(pulls, tiles.pieces(q_ref), strict=True):
    x = weight_bar * memories.load_weights(memory_ref, at, row)[None, :]
    for read_bar, column in zip(read_bars, tiles.pieces(bar_ref), strict=True):
      tile = triton.load(memory_ref, memories.tile_index(at, row, column))
      x += plan.dot(read_bar, tile, transpose_b=True)
    queries_bar.append(pull(x)[0])
  tiles.store(q_bar_ref, batch, rows, head, queries_bar)
  index, tails = memories.gate_index(weight_bar_ref, batch, rows, head)
  triton.store(weight_bar_ref, index, weight_bar, tails=tails)


def _memory_kernel(
  q_ref,
  memory_ref,
  lengths_ref,
  bar_ref,
  weight_bar_ref,
  memory_bar_ref,
  *,
  plan,
  kv_len,
):
  part, head, batch = map(pl.program_id, range(3))
  at = batch, head
  count = _count(lengths_ref, batch, kv_len)
  normalize = _normalize(plan, count, q_ref.shape[3])
  limit = memories.limit_of(q_ref, None, batch, memories.TAKEN)

  def add(chunk, sums):
    memory_bar, weights_bar, totals_bar = sums
    rows = tiles.rows_of(chunk, memories.TAKEN)
    kept = memories.kept_rows(rows, limit)
    queries = tiles.load(q_ref, batch, rows, head, plan.feature_map, kept)
    bars = tiles.load(bar_ref, batch, rows, head, features.identity, kept)
    weight = _weight(queries, memory_ref, at, q_ref)
    read_bars = []
    for j, column in enumerate(tiles.pieces(bar_ref)):
      total = memories.load_totals(plan, memory_ref, at, column)
      # The output is linear in the sums: the gradient to them needs them not.
      none = jnp.zeros_like(bars[j])
      _, pull = jax.vjp(normalize, none, weight, total)
      sums_bar, _, total_bar = pull(bars[j])
      # Where there is no query, there may be no number either.
      read_bars.append(tiles.only(sums_bar, kept))
      if plan.means:
        totals_bar[j] += total_bar[0]
    memory_bar = memories.added(plan, memory_bar, queries, read_bars)
    weight_bar = memories.load_gate(weight_bar_ref, batch, rows, head, kept)
    weights_bar = memories.summed(
      weights_bar, memories.gated(queries, weight_bar)
    )
    return memory_bar, weights_bar, totals_bar

  start, stop = memories.share_of(part, q_ref, memory_bar_ref, limit)
  sums = lax.fori_loop(start, stop, add, memories.nothing(plan, q_ref, bar_ref))
  memories.save(
    plan, memory_bar_ref, (batch, head, part), q_ref, bar_ref, *sums
  )


read.defvjp(_read_forward, _read_backward)


def _answers(plan, queries, memory_ref, at, q_ref, out_ref):
  """Returns sums of values in pieces, and of weights [rows, 1]."""
  sums = [
    sum(
      plan.dot(
        query, triton.load(memory_ref, memories.tile_index(at, row, column))
      )
      for query, row in zip(queries, tiles.pieces(q_ref), strict=True)
    )
    for column in tiles.pieces(out_ref)
  ]
  return sums, _weight(queries, memory_ref, at, q_ref)


def _weight(queries, memory_ref, at, q_ref):
  """Returns the sums of weights [rows, 1]."""
  return sum(
    (query * memories.load_weights(memory_ref, at, row)[None, :]).sum(
      1, keepdims=True
    )
    for query, row in zip(queries, tiles.pieces(q_ref), strict=True)
  )


def _normalize(plan, count, dim) -> Callable:
  """Returns the function of sums, weight and total that gives the output."""
  least = jnp.maximum(count, 1.0)

  def function(sums, weight, total):
    weight = jnp.where(count == 0, 1.0, weight)
    mean = functools.partial(jnp.divide, total, least)
    return plan.normalizer.normalize(sums, weight, least, mean, dim)

  return function


def _count(lengths_ref, batch, kv_len):
  """Returns the number of keys, float32."""
  count = kv_len if lengths_ref is None else triton.load(lengths_ref, (batch,))
  return jnp.asarray(count).astype(jnp.float32)
