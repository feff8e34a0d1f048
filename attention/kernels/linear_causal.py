"""Causal linear attention on TPUs: scans over parts of the sequence.

The memory of all parts before stays in VMEM. Within a part queries see keys by
scores, which are those of softmax attention without the exponential, transposed:
[keys, queries].
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
  """

  q: Any = None
  k: Any = None
  v: Any = None
  key_gate: Any = None
  value_gate: Any = None
  out: Any = None
  weight: Any = None
  weight_bar: Any = None


class _Scratch(NamedTuple):
  """Memories of the heads of a step, [step_heads, *plan.memory]."""

  memory: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(plan: Plan, q, k, v, key_gate, value_gate, lengths) -> jax.Array:
  """Returns the output [batch, heads, v_dim, tokens], like the queries.

  Args:
    plan: the plan.
    q: [batch, heads, dim, tokens].
    k: likewise.
    v: [batch, heads, v_dim, tokens].
    key_gate: [batch or 1, heads or 1, 1, tokens], or None.
    value_gate: likewise.
    lengths: int32 [batch]; tokens beyond are padding, and get zeros.
  """
  grid = _grid(plan, q, backward=False)
  arrays = _Arrays(q, k, v, key_gate, value_gate)
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
  *arrays, lengths = residuals
  arrays = _Arrays(*arrays, out=bar)
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
  )


attend.defvjp(_forward, _backward)


def _call(grid, kernel, name, lengths, inputs, outputs, *, products):
  plan = grid.plan
  rows, columns = plan.memory
  shapes = (
    None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype)
    for x in outputs
  )
  return grid.call(
    kernel,
    name,
    lengths,
    _Arrays(*map(grid.tokens, inputs)),
    _Arrays(*map(grid.tokens, shapes)),
    _Scratch((grid.step_heads, *plan.memory)),
    products=products * (rows * columns + grid.part * (rows + columns) // 2),
  )


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


def _clear_at_start(memory) -> None:
  @pl.when(pl.program_id(2) == 0)
  def _():
    memory[...] = jnp.zeros_like(memory)


def _sums(plan, x, memory):
  """Returns the sums of values, and that of weights [1, part].

  Args:
    plan: the plan.
    x: the part.
    memory: that of the parts before, in pieces.
  """
  sums = tiles.product(memory, x.q, 1, 0)
  sums += tiles.product(x.v, _scores(plan, x.k, x.q), 1, 0)
  return sums[: plan.v_dim], sums[plan.v_dim : plan.v_dim + 1]


def _normalize(plan, part):
  """Returns the function of sums and weight that gives the output."""
  count = part.numbers() + 1
  if part.limit is not None:
    count = jnp.minimum(count, part.limit)
  function = tiles.normalize(plan, count.astype(jnp.float32))
  # There are no means here, and padding gets zeros.
  return lambda sums, weight: part.kept(function(sums, weight, None))


def _forward_kernel(grid, lengths, inputs, outputs, scratch):
  plan = grid.plan
  _clear_at_start(scratch.memory)

  def answer(part):
    x = _mapped(plan, part, inputs)
    memory = tiles.pieces(plan, scratch.memory[part.head])
    out = _normalize(plan, part)(*_sums(plan, x, memory))
    part.store(outputs.out, out)
    scratch.memory[part.head] += tiles.product(x.v, x.k, 1, 1)

  grid.each_part(grid.limit(lengths), answer)


def _backward_q_kernel(grid, lengths, inputs, outputs, scratch):
  """Pulls back to queries, and says what the sums are divided by."""
  plan = grid.plan
  _clear_at_start(scratch.memory)

  def pull(part):
    x = _mapped(plan, part, inputs)
    memory = tiles.pieces(plan, scratch.memory[part.head])
    sums, weight = _sums(plan, x, memory)
    _, pull_sums = jax.vjp(_normalize(plan, part), sums, weight)
    sums_bar, weight_bar = pull_sums(part.kept(part.load(inputs.out)))
    part.store(outputs.weight, weight)
    part.store(outputs.weight_bar, weight_bar)
    bar = tiles.pieces(plan, _rows(sums_bar, weight_bar))
    q_bar = tiles.product(memory, bar, 0, 0)
    q_bar += tiles.product(x.k, _scores(plan, x.v, bar), 1, 0)
    part.store(outputs.q, *x.pull_q(q_bar))
    scratch.memory[part.head] += tiles.product(x.v, x.k, 1, 1)

  grid.each_part(grid.limit(lengths), pull)


def _backward_k_kernel(grid, lengths, inputs, outputs, scratch):
  """Pulls back to keys, values and gates, from the last part to the first.

  The memory here is the gradient to the memory, from queries of later parts.
  """
  plan = grid.plan
  _clear_at_start(scratch.memory)

  def pull(part):
    x = _mapped(plan, part, inputs)
    bar = part.kept(part.load(inputs.out))
    weight, weight_bar = (
      part.kept(part.load(row)) for row in (inputs.weight, inputs.weight_bar)
    )
    # Linear in the sums, so that it does not matter at which.
    _, pull_sums = jax.vjp(
      lambda sums: _normalize(plan, part)(sums, weight), jnp.zeros_like(bar)
    )
    bar = tiles.pieces(plan, _rows(*pull_sums(bar), weight_bar))
    later = tiles.pieces(plan, scratch.memory[part.head])
    k_bar = tiles.product(later, x.v, 0, 0)
    k_bar += tiles.product(x.q, _scores(plan, x.v, bar), 1, 1)
    v_bar = tiles.product(later, x.k, 1, 0)
    v_bar += tiles.product(bar, _scores(plan, x.k, x.q), 1, 1)
    for refs, gradients in (
      ((outputs.k, outputs.key_gate), x.pull_k(k_bar)),
      ((outputs.v, outputs.value_gate), x.pull_v(v_bar)),
    ):
      for ref, gradient in zip(refs, gradients, strict=True):
        part.store(ref, gradient)
    scratch.memory[part.head] += tiles.product(bar, x.q, 1, 1)

  grid.each_part(grid.limit(lengths), pull)


def _rows(sums, weight):
  """Returns sums [v_dim, part] and the weight as rows of a memory."""
  return jnp.concatenate([sums, tiles.first_row(weight)])
