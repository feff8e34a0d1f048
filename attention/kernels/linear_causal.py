"""Causal linear attention on TPUs: scans over parts of the sequence.

The memory of all parts before stays in VMEM. Within a part queries see keys by
scores, which are those of softmax attention without the exponential,
transposed: [keys, queries].
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention.kernels import linear_tiles as tiles
from attention.kernels.linear_memory import gate_gradient
from attention.kernels.linear_plan import Grid, Plan

# Tokens with scores among themselves: a matrix unit's side.
CHUNK = 128


class _Arrays(NamedTuple):
  """What kernels read and write, or gradients to it.

  Attributes:
    q: queries [batch, heads, dim, tokens].
    k: keys.
    v: values [batch, heads, v_dim, tokens].
    key_gate: rows [batch or 1, heads or 1, 1, tokens], or None.
    value_gate: likewise.
    out: the output [batch, heads, v_dim, tokens].
    weight: sum of the weights of a query [batch, heads, 1, tokens].
    weight_bar: gradient to it.
    memory: what keys before the first here have left, [batch, heads,
      *plan.memory], or None.
  """

  q: Any = None
  k: Any = None
  v: Any = None
  key_gate: Any = None
  value_gate: Any = None
  out: Any = None
  weight: Any = None
  weight_bar: Any = None
  memory: Any = None


class _Scratch(NamedTuple):
  """Memories of the heads of a step, [step_heads, *plan.memory]."""

  memory: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
  plan: Plan, q, k, v, key_gate, value_gate, lengths, memory=None
) -> jax.Array:
  """Returns the output [batch, heads, v_dim, tokens], like the queries.

  Args:
    plan: the plan.
    q: [batch, heads, dim, tokens].
    k: likewise.
    v: [batch, heads, v_dim, tokens].
    key_gate: [batch or 1, heads or 1, 1, tokens], or None.
    value_gate: likewise.
    lengths: int32 [batch]; tokens beyond are padding, and get zeros. See
      `plan.continued`.
    memory: what earlier keys have left, of `linear_memory.make`; None if there
      are none.
  """
  grid = _grid(plan, q, backward=False)
  arrays = _Arrays(q, k, v, key_gate, value_gate, memory=memory)
  out = grid.row(plan.v_dim, q.dtype)
  return _call(
    grid,
    _forward_kernel,
    "linear_attention_causal",
    lengths,
    arrays,
    _Arrays(out=out),
    products=2,
  ).out


def _forward(plan, *arrays):
  return attend(plan, *arrays), arrays


def _backward(plan, residuals, bar):
  *arrays, lengths, memory = residuals
  arrays = _Arrays(*arrays, out=bar, memory=memory)
  grid = _grid(plan, arrays.q, backward=False)
  row = grid.row(1, jnp.float32)
  first = _call(
    grid,
    _backward_q_kernel,
    "linear_attention_causal_backward_q",
    lengths,
    arrays,
    _Arrays(q=arrays.q, weight=row, weight_bar=row),
    products=4,
  )
  second = _call(
    _grid(plan, arrays.q, backward=True),
    _backward_k_kernel,
    "linear_attention_causal_backward_k",
    lengths,
    arrays._replace(weight=first.weight, weight_bar=first.weight_bar),
    _Arrays(
      k=arrays.k,
      v=arrays.v,
      key_gate=None if arrays.key_gate is None else row,
      value_gate=None if arrays.value_gate is None else row,
      memory=memory,
    ),
    products=5,
  )
  return (
    first.q,
    second.k,
    second.v,
    gate_gradient(second.key_gate, arrays.key_gate),
    gate_gradient(second.value_gate, arrays.value_gate),
    None,
    second.memory,
  )


attend.defvjp(_forward, _backward)


def _call(grid, kernel, name, lengths, inputs, outputs, *, products):
  plan = grid.plan
  rows, columns = plan.memory
  shapes = _Arrays(
    *(
      None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype)
      for x in outputs
    )
  )
  return grid.call(
    kernel,
    name,
    lengths,
    _blocks(grid, inputs),
    _blocks(grid, shapes),
    _Scratch((grid.step_heads, *plan.memory)),
    products=products * (rows * columns + CHUNK * (rows + columns) // 2),
  )


def _blocks(grid, arrays: _Arrays) -> _Arrays:
  *of_tokens, memory = arrays
  return _Arrays(*map(grid.tokens, of_tokens), grid.state(memory))


def _grid(plan, x, *, backward) -> Grid:
  return Grid(plan, *x.shape[:2], x.shape[3], backward)


class _Mapped(NamedTuple):
  """A part of a head, mapped and in pieces, and how to pull back to it."""

  q: Any
  k: Any
  v: Any
  pull_q: Any
  pull_k: Any
  pull_v: Any


def _mapped(plan, part, inputs) -> _Mapped:
  q, k, v, key_gate, value_gate = map(part.load, inputs[:5])
  mapped_q, pull_q = jax.vjp(lambda q: tiles.map_features(plan, q, part), q)
  mapped_k, pull_k = jax.vjp(
    functools.partial(tiles.map_keys, plan, part), k, key_gate
  )
  mapped_v, pull_v = jax.vjp(
    functools.partial(tiles.map_values, plan, part), v, value_gate
  )
  return _Mapped(
    tiles.query_pieces(plan, mapped_q),
    tiles.key_pieces(plan, mapped_k, key_gate),
    tiles.value_pieces(plan, mapped_v, value_gate),
    pull_q,
    pull_k,
    pull_v,
  )


def _scores(plan, left, right):
  """Returns scores [keys, queries] in pieces, zero where a key comes later."""
  scores = tiles.product(left, right, 0, 0)
  key = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  query = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  return tiles.pieces(plan, jnp.where(key <= query, scores, 0.0))


def _begin(memory, first=None) -> None:
  """Lets the memories of a step's heads begin with zeros, or what is given."""

  @pl.when(pl.program_id(2) == 0)
  def _():
    memory[...] = jnp.zeros_like(memory) if first is None else first[0]


def _normalize(plan, part):
  """Returns the function of sums and weight that gives the output."""
  count = part.numbers() + 1
  if part.limit is not None:
    count = jnp.minimum(count, part.limit)
  count = count + part.before
  function = tiles.normalize(plan, count.astype(jnp.float32))
  # There are no means here, and padding gets zeros.
  return lambda sums, weight: part.kept(function(sums, weight, None))


def _chunks(grid, part) -> list:
  """Cuts a part, in the order of the scan."""
  chunks = part.chunks(min(CHUNK, part.size))
  return chunks[::-1] if grid.backward else chunks


def _memories(plan, ref, head, added) -> list:
  """Returns the memory before each chunk, in pieces, and keeps the last.

  Args:
    plan: the plan.
    ref: memories of the heads of a step.
    head: which one.
    added: what each chunk adds.
  """
  memory, before = ref[head], []
  for x in added:
    before.append(tiles.pieces(plan, memory))
    memory += x
  ref[head] = memory
  return before


def _own_sums(plan, arrays) -> list:
  """Returns for each chunk what its queries get of its own keys."""
  scores = [_scores(plan, x.k, x.q) for x in arrays]
  return [
    tiles.product(x.v, score, 1, 0)
    for x, score in zip(arrays, scores, strict=True)
  ]


def _sums(plan, x, own, memory) -> tuple:
  """Returns the sums of values of a chunk, and that of weights [1, chunk]."""
  sums = own + tiles.product(memory, x.q, 1, 0)
  return sums[: plan.v_dim], sums[plan.v_dim : plan.v_dim + 1]


# Each kernel does one thing for all chunks of a part before it does the next:
# only the memory goes on from chunk to chunk, and what is loaded first waits
# for no result. So the products of one chunk run while another's are underway.


def _forward_kernel(grid, lengths, inputs, outputs, scratch):
  plan = grid.plan
  _begin(scratch.memory, inputs.memory)

  def answer(part):
    chunks = _chunks(grid, part)
    arrays = [_mapped(plan, chunk, inputs) for chunk in chunks]
    own = _own_sums(plan, arrays)
    added = [tiles.product(x.v, x.k, 1, 1) for x in arrays]
    memories = _memories(plan, scratch.memory, part.head, added)
    outs = [
      _normalize(plan, chunk)(*_sums(plan, *sums))
      for chunk, *sums in zip(chunks, arrays, own, memories, strict=True)
    ]
    for chunk, out in zip(chunks, outs, strict=True):
      chunk.store(outputs.out, out)

  grid.each_part(grid.limit(lengths), answer, grid.before(lengths))


def _backward_q_kernel(grid, lengths, inputs, outputs, scratch):
  """Pulls back to queries, and says what the sums are divided by."""
  plan = grid.plan
  _begin(scratch.memory, inputs.memory)

  def pull(part):
    chunks = _chunks(grid, part)
    arrays = [_mapped(plan, chunk, inputs) for chunk in chunks]
    outs = [chunk.kept(chunk.load(inputs.out)) for chunk in chunks]
    own = _own_sums(plan, arrays)
    added = [tiles.product(x.v, x.k, 1, 1) for x in arrays]
    memories = _memories(plan, scratch.memory, part.head, added)
    sums = [_sums(plan, *x) for x in zip(arrays, own, memories, strict=True)]
    bars = []
    for chunk, x, out in zip(chunks, sums, outs, strict=True):
      bars.append(jax.vjp(_normalize(plan, chunk), *x)[1](out))
    rows = [tiles.pieces(plan, _rows(*bar)) for bar in bars]
    q_bars = [
      tiles.product(x.k, _scores(plan, x.v, bar), 1, 0)
      + tiles.product(memory, bar, 0, 0)
      for x, bar, memory in zip(arrays, rows, memories, strict=True)
    ]
    for i, chunk in enumerate(chunks):
      chunk.store(outputs.q, *arrays[i].pull_q(q_bars[i]))
      chunk.store(outputs.weight, sums[i][1])
      chunk.store(outputs.weight_bar, bars[i][1])

  grid.each_part(grid.limit(lengths), pull, grid.before(lengths))


def _backward_k_kernel(grid, lengths, inputs, outputs, scratch):
  """Pulls back to keys, values and gates, from the last part to the first.

  The memory here is the gradient to the memory, from queries of later chunks.
  """
  plan = grid.plan
  _begin(scratch.memory)

  def pull(part):
    chunks = _chunks(grid, part)
    arrays = [_mapped(plan, chunk, inputs) for chunk in chunks]
    bars = [_sums_bar(plan, chunk, inputs) for chunk in chunks]
    both = list(zip(arrays, bars, strict=True))
    scores_bar = [_scores(plan, x.v, bar) for x, bar in both]
    scores = [_scores(plan, x.k, x.q) for x in arrays]
    own = [
      (tiles.product(x.q, score_bar, 1, 1), tiles.product(bar, score, 1, 1))
      for (x, bar), score_bar, score in zip(
        both, scores_bar, scores, strict=True
      )
    ]
    added = [tiles.product(bar, x.q, 1, 1) for x, bar in both]
    memories = _memories(plan, scratch.memory, part.head, added)
    gradients = [
      (
        k_bar + tiles.product(later, x.v, 0, 0),
        v_bar + tiles.product(later, x.k, 1, 0),
      )
      for x, later, (k_bar, v_bar) in zip(arrays, memories, own, strict=True)
    ]
    for chunk, x, (k_bar, v_bar) in zip(chunks, arrays, gradients, strict=True):
      k_bar, key_gate_bar = x.pull_k(k_bar)
      v_bar, value_gate_bar = x.pull_v(v_bar)
      chunk.store(outputs.k, k_bar)
      chunk.store(outputs.v, v_bar)
      chunk.store(outputs.key_gate, key_gate_bar)
      chunk.store(outputs.value_gate, value_gate_bar)

  grid.each_part(grid.limit(lengths), pull, grid.before(lengths))
  if outputs.memory is not None:

    @pl.when(pl.program_id(2) == grid.size[2] - 1)
    def _():
      outputs.memory[0] = scratch.memory[...]


def _sums_bar(plan, chunk, inputs) -> tuple:
  """Returns the gradient to the sums and the weight as rows, in pieces."""
  out, weight, weight_bar = (
    chunk.kept(chunk.load(ref))
    for ref in (inputs.out, inputs.weight, inputs.weight_bar)
  )
  # Linear in the sums, so that it does not matter at which.
  _, pull = jax.vjp(
    lambda sums: _normalize(plan, chunk)(sums, weight), jnp.zeros_like(out)
  )
  return tiles.pieces(plan, _rows(*pull(out), weight_bar))


def _rows(sums, weight):
  """Returns sums [v_dim, part] and the weight as rows of a memory."""
  return jnp.concatenate([sums, tiles.first_row(weight)])
