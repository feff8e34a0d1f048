"""Linear attention on NVIDIA GPUs: the memory of all keys, and its gradient."""

import functools

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def make(plan: Plan, k, v, key_gate, value_gate, lengths) -> jax.Array:
  """Returns the memory of all keys, float32 [batch, heads, rows, columns].

  Args:
    plan: the plan.
    k: [batch, tokens, heads, dim].
    v: [batch, tokens, heads, v_dim].
    key_gate: [batch or 1, tokens, heads or 1], or None.
    value_gate: likewise.
    lengths: int32 [batch], how many tokens are no padding, or None.
  """
  batch, length, heads, _ = k.shape
  parts = memories.count_parts(batch * heads, length)
  memory = memories.shape_of(plan, k, v, parts)
  return memories.call(
    plan,
    _make_kernel,
    "linear_attention_make",
    grid=(parts, heads, batch),
    out_shape=memory,
    products=length * batch * heads * memory.shape[3] * memory.shape[4],
  )(k, v, key_gate, value_gate, lengths).sum(2)


def _make_kernel(
  k_ref, v_ref, key_gate_ref, value_gate_ref, lengths_ref, memory_ref, *, plan
):
  part, head, batch = map(pl.program_id, range(3))
  limit = memories.limit_of(k_ref, lengths_ref, batch, memories.TAKEN)

  def add(chunk, sums):
    memory, weights, totals = sums
    rows = tiles.rows_of(chunk, memories.TAKEN)
    kept = memories.kept_rows(rows, limit)
    keys = tiles.load(k_ref, batch, rows, head, plan.feature_map, kept)
    values = tiles.load(v_ref, batch, rows, head, features.identity, kept)
    keys = memories.gated(
      keys, memories.load_gate(key_gate_ref, batch, rows, head, kept)
    )
    values = memories.gated(
      values, memories.load_gate(value_gate_ref, batch, rows, head, kept)
    )
    if plan.means:
      totals = memories.summed(totals, values)
    return (
      memories.added(plan, memory, keys, values),
      memories.summed(weights, keys),
      totals,
    )

  start, stop = memories.share_of(part, k_ref, memory_ref, limit)
  sums = lax.fori_loop(start, stop, add, memories.nothing(plan, k_ref, v_ref))
  memories.save(plan, memory_ref, (batch, head, part), k_ref, v_ref, *sums)


def _make_forward(plan, *arrays):
  return make(plan, *arrays), arrays


def _make_backward(plan, arrays, bar):
  k, v, key_gate, value_gate, lengths = arrays
  batch, length, heads, _ = k.shape
  gate_bar = jax.ShapeDtypeStruct((batch, length, heads), jnp.float32)
  shapes = (
    jax.ShapeDtypeStruct(k.shape, k.dtype),
    jax.ShapeDtypeStruct(v.shape, v.dtype),
    None if key_gate is None else gate_bar,
    None if value_gate is None else gate_bar,
  )
  k_bar, v_bar, *gate_bars = memories.call(
    plan,
    _make_backward_kernel,
    "linear_attention_make_backward",
    grid=(pl.cdiv(length, CHUNK), heads, batch),
    out_shape=shapes,
    products=2 * length * batch * heads * bar.shape[2] * bar.shape[3],
  )(k, v, key_gate, value_gate, lengths, bar)
  gates = zip(gate_bars, (key_gate, value_gate), strict=True)
  return k_bar, v_bar, *(_gate_gradient(*pair) for pair in gates), None


def _make_backward_kernel(
  k_ref,
  v_ref,
  key_gate_ref,
  value_gate_ref,
  lengths_ref,
  bar_ref,
  k_bar_ref,
  v_bar_ref,
  key_gate_bar_ref,
  value_gate_bar_ref,
  *,
  plan,
):
  chunk, head, batch = map(pl.program_id, range(3))
  rows = tiles.rows_of(chunk)
  kept = memories.kept_rows(
    rows, memories.limit_of(k_ref, lengths_ref, batch, CHUNK)
  )
  keys, pulls = memories.load_mapped(plan, k_ref, batch, rows, head, kept)
  values = tiles.load(v_ref, batch, rows, head, features.identity, kept)
  key_gate = memories.load_gate(key_gate_ref, batch, rows, head, kept)
  value_gate = memories.load_gate(value_gate_ref, batch, rows, head, kept)
  at = batch, head
  # To the features and values that the memory takes in, gates included.
  keys_bar = [
    memories.load_weights(bar_ref, at, i)[None, :] for i in tiles.pieces(k_ref)
  ]
  values_bar = [
    memories.load_totals(plan, bar_ref, at, j) for j in tiles.pieces(v_ref)
  ]
  gated_keys, gated_values = (
    memories.gated(keys, key_gate),
    memories.gated(values, value_gate),
  )
  for i, row in enumerate(tiles.pieces(k_ref)):
    for j, column in enumerate(tiles.pieces(v_ref)):
      tile = triton.load(bar_ref, memories.tile_index(at, row, column))
      keys_bar[i] += plan.dot(gated_values[j], tile, transpose_b=True)
      values_bar[j] += plan.dot(gated_keys[i], tile)
  gates = (
    (key_gate_bar_ref, keys_bar, keys),
    (value_gate_bar_ref, values_bar, values),
  )
  for ref, bars, ungated in gates:
    if ref is None:
      continue
    products = zip(bars, ungated, strict=True)
    bar = sum((x * y).sum(1, keepdims=True) for x, y in products)
    index, tails = memories.gate_index(ref, batch, rows, head)
    triton.store(ref, index, bar, tails=tails)
  keys_bar = memories.gated(keys_bar, key_gate)
  keys_bar = [pull(x)[0] for pull, x in zip(pulls, keys_bar, strict=True)]
  values_bar = [
    tiles.only(x, kept) for x in memories.gated(values_bar, value_gate)
  ]
  tiles.store(k_bar_ref, batch, rows, head, keys_bar)
  tiles.store(v_bar_ref, batch, rows, head, values_bar)


make.defvjp(_make_forward, _make_backward)


def _gate_gradient(bar, gate):
  """Returns the gradient to a gate of that to each token and head."""
  if gate is None:
    return None
  axes = tuple(i for i in range(3) if gate.shape[i] < bar.shape[i])
  return bar.sum(axes, keepdims=True).astype(gate.dtype)
