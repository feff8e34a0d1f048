"""Linear attention among all tokens on TPUs: a memory is made, then read.

Two kernels, each with its gradient. Queries, keys and values are read once, the
output is written once, and a memory is as small as a head is narrow.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from attention.kernels import linear_tiles as tiles
from attention.kernels.linear_plan import Grid, Plan


class _Keys(NamedTuple):
  """Keys, values and gates, and the gradient to the memory made of them."""

  k: Any
  v: Any
  key_gate: Any
  value_gate: Any
  memory: Any = None


class _Queries(NamedTuple):
  """Queries, the memory that they read, and the gradient to what they get."""

  q: Any
  memory: Any
  out: Any = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def make(plan: Plan, k, v, key_gate, value_gate, lengths) -> jax.Array:
  """Returns the sums over keys of [v, 1] phi(k)^T, gated, float32.

  Args:
    plan: the plan.
    k: [batch, heads, dim, tokens].
    v: [batch, heads, v_dim, tokens].
    key_gate: [batch or 1, heads or 1, 1, tokens], or None.
    value_gate: likewise.
    lengths: int32 [batch].

  Returns:
    [batch, heads, *plan.memory].
  """
  grid = _grid(plan, k)
  results = grid.call(
    _make_kernel,
    "linear_attention_make",
    lengths,
    _key_blocks(grid, k, v, key_gate, value_gate),
    _Queries(None, grid.state(grid.memory())),
    products=plan.memory[0] * plan.memory[1],
  )
  return results.memory


def _make_kernel(grid, lengths, inputs, outputs, scratch):
  del scratch
  plan, memory = grid.plan, outputs.memory
  _clear_at_start(memory)

  def add(part):
    k, v, key_gate, value_gate = map(part.load, inputs[:4])
    keys = tiles.map_keys(plan, part, k, key_gate)
    values = tiles.map_values(plan, part, v, value_gate)
    memory[0, part.head] += tiles.product(
      tiles.value_pieces(plan, values, value_gate),
      tiles.key_pieces(plan, keys, key_gate),
      1,
      1,
    )

  grid.each_part(grid.limit(lengths), add)


def _make_forward(plan, *arrays):
  return make(plan, *arrays), arrays


def _make_backward(plan, arrays, bar):
  k, v, key_gate, value_gate, lengths = arrays
  grid = _grid(plan, k)
  gate_bar = grid.row(1, jnp.float32)
  results = grid.call(
    _make_backward_kernel,
    "linear_attention_make_backward",
    lengths,
    _key_blocks(grid, k, v, key_gate, value_gate, bar),
    _Keys(
      grid.tokens(grid.row(k.shape[2], k.dtype)),
      grid.tokens(grid.row(v.shape[2], v.dtype)),
      None if key_gate is None else grid.tokens(gate_bar),
      None if value_gate is None else grid.tokens(gate_bar),
    ),
    products=2 * plan.memory[0] * plan.memory[1],
  )
  return (
    results.k,
    results.v,
    gate_gradient(results.key_gate, key_gate),
    gate_gradient(results.value_gate, value_gate),
    None,
  )


def _make_backward_kernel(grid, lengths, inputs, outputs, scratch):
  del scratch
  plan = grid.plan

  def pull(part):
    k, v, key_gate, value_gate = map(part.load, inputs[:4])
    bar = tiles.pieces(plan, inputs.memory[0, part.head])
    keys, pull_keys = jax.vjp(
      functools.partial(tiles.map_keys, plan, part), k, key_gate
    )
    values, pull_values = jax.vjp(
      functools.partial(tiles.map_values, plan, part), v, value_gate
    )
    values = tiles.value_pieces(plan, values, value_gate)
    keys = tiles.key_pieces(plan, keys, key_gate)
    k_bar, key_gate_bar = pull_keys(tiles.product(bar, values, 0, 0))
    v_bar, value_gate_bar = pull_values(tiles.product(bar, keys, 1, 0))
    part.store(outputs.k, k_bar)
    part.store(outputs.v, v_bar)
    part.store(outputs.key_gate, key_gate_bar)
    part.store(outputs.value_gate, value_gate_bar)

  grid.each_part(grid.limit(lengths), pull)


make.defvjp(_make_forward, _make_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def read(plan: Plan, q, memory, lengths) -> jax.Array:
  """Returns what queries read of a memory, normalised, like the queries.

  Args:
    plan: the plan.
    q: [batch, heads, dim, tokens].
    memory: what `make` returned.
    lengths: int32 [batch], the number of keys in the memory.

  Returns:
    [batch, heads, v_dim, tokens].
  """
  grid = _grid(plan, q)
  results = grid.call(
    _read_kernel,
    "linear_attention_read",
    lengths,
    _Queries(grid.tokens(q), grid.state(memory)),
    _Queries(None, None, grid.tokens(grid.row(plan.v_dim, q.dtype))),
    products=plan.memory[0] * plan.features,
  )
  return results.out


def _read_kernel(grid, lengths, inputs, outputs, scratch):
  del scratch
  plan = grid.plan
  count = _count(lengths)

  def answer(part):
    memory, mean = _columns(plan, inputs.memory[0, part.head], count)
    mapped = tiles.map_features(plan, part.load(inputs.q), part)
    sums = tiles.product(
      tiles.pieces(plan, memory), tiles.query_pieces(plan, mapped), 1, 0
    )
    out = tiles.normalize(plan, count)(*_rows(plan, sums), mean)
    part.store(outputs.out, out)

  grid.each_part(grid.limit(), answer)


def _read_forward(plan, *arrays):
  return read(plan, *arrays), arrays


def _read_backward(plan, arrays, bar):
  q, memory, lengths = arrays
  grid = _grid(plan, q)
  results = grid.call(
    _read_backward_kernel,
    "linear_attention_read_backward",
    lengths,
    _Queries(grid.tokens(q), grid.state(memory), grid.tokens(bar)),
    _Queries(
      grid.tokens(grid.row(q.shape[2], q.dtype)), grid.state(grid.memory())
    ),
    products=3 * plan.memory[0] * plan.features,
  )
  return results.q, results.memory, None


def _read_backward_kernel(grid, lengths, inputs, outputs, scratch):
  del scratch
  plan = grid.plan
  count = _count(lengths)
  _clear_at_start(outputs.memory)

  def pull(part):
    memory, mean = _columns(plan, inputs.memory[0, part.head], count)
    memory = tiles.pieces(plan, memory)
    mapped, pull_map = jax.vjp(
      lambda q: tiles.map_features(plan, q, part), part.load(inputs.q)
    )
    mapped = tiles.query_pieces(plan, mapped)
    sums = _rows(plan, tiles.product(memory, mapped, 1, 0))
    _, pull_sums = jax.vjp(tiles.normalize(plan, count), *sums, mean)
    bar = part.kept(part.load(inputs.out))
    sums_bar, weight_bar, mean_bar = pull_sums(bar)
    bar = tiles.pieces(
      plan, jnp.concatenate([sums_bar, tiles.first_row(weight_bar)])
    )
    part.store(outputs.q, *pull_map(tiles.product(memory, bar, 0, 0)))
    at = 0, part.head, slice(None), slice(plan.features)
    outputs.memory[at] += tiles.product(bar, mapped, 1, 1)
    if plan.means:
      column = slice(plan.features, plan.features + 1)
      at = 0, part.head, slice(plan.v_dim), column
      outputs.memory[at] += mean_bar / jnp.maximum(count, 1.0)

  grid.each_part(grid.limit(), pull)


read.defvjp(_read_forward, _read_backward)


def _grid(plan, x) -> Grid:
  return Grid(plan, *x.shape[:2], x.shape[3])


def _key_blocks(grid, k, v, key_gate, value_gate, memory=None) -> _Keys:
  arrays = map(grid.tokens, (k, v, key_gate, value_gate))
  return _Keys(*arrays, grid.state(memory))


def _clear_at_start(memory) -> None:
  @pl.when(pl.program_id(2) == 0)
  def _():
    memory[...] = jnp.zeros_like(memory)


def _count(lengths):
  """The number of keys that queries see, [1, 1]."""
  return jnp.full((1, 1), lengths[pl.program_id(0)]).astype(jnp.float32)


def _columns(plan, memory, count):
  """Returns the columns of features, and the mean of values [v_dim, 1]."""
  if not plan.means:
    return memory, None
  total = memory[: plan.v_dim, plan.features : plan.features + 1]
  return memory[:, : plan.features], total / jnp.maximum(count, 1.0)


def _rows(plan, sums):
  """Returns the sums of values, and that of weights [1, part]."""
  return sums[: plan.v_dim], sums[plan.v_dim : plan.v_dim + 1]


def gate_gradient(bar, gate):
  """Returns the gradient to a gate of that to each element and head."""
  if gate is None:
    return None
  axes = tuple(i for i in range(2) if gate.shape[i] < bar.shape[i])
  return bar.sum(axes, keepdims=True) if axes else bar
