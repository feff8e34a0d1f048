"""The backward pass of flash attention on TPU.

Each tile of scores is made again from the log-sum-exp of its rows, in two
kernels: one goes along queries for their gradient, one along keys for those of
keys and values. One kernel could do both only by adding to the one or the other
in an order that depends on the chip.

In the kernel for keys and values a tile of scores lies on its side, [keys,
queries]: both its products then contract the axis they have at hand, and the
statistics of a row are a row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from attention.kernels import flash_tpu_operands as of_operands
from attention.kernels import flash_tpu_tiles as tiles
from attention.kernels.flash_plan import Plan
from attention.kernels.flash_tpu_grid import Arrays, Grid
from attention.kernels.tpu import LANES, Blocked


class _RowOutputs(NamedTuple):
  """[block_q, dim] of queries, and sums for operands of `of_operands.sums`."""

  d_q: Any
  operands: Any


class _RowScratch(NamedTuple):
  """What goes on along the tiles of a row.

  Attributes:
    d_q: the sum so far, [block_q, dim]: float32, whatever the gradient is.
    lse, delta: statistics of the row as columns, the same in all lanes
      [block_q, LANES]: turned once a row, not once a tile.
  """

  d_q: Any
  lse: Any
  delta: Any


class _ColumnOutputs(NamedTuple):
  """[block_k, dim] of keys and of values for each query head, and sums."""

  d_k: Any
  d_v: Any
  operands: Any


class _ColumnScratch(NamedTuple):
  """The sums so far along the tiles of a column, [block_k, dim] in float32."""

  d_k: Any
  d_v: Any


def backward(
  plan: Plan,
  q: Array,
  k: Array,
  v: Array,
  operands: Sequence[Array],
  indices: tuple[Array, ...],
  lists: Sequence[Array],
  d_out: Array,
  lse: Array,
  delta: Array,
) -> tuple[Array, Array, Array, list[Array | None]]:
  """Returns the gradients of q, k, v and of the modifications' operands.

  Args:
    plan: as for `forward`, like all arguments up to `lists`.
    q: queries.
    k: keys.
    v: values.
    operands: arrays of the modifications and of the mask.
    indices: numbers of the batch elements and of the heads.
    lists: tiles of each row and of each column, or nothing.
    d_out: gradient of the output.
    lse: log-sum-exp, -MASKED for rows to be left out, [batch, heads, q_len].
    delta: what the gradient of a weight loses, [batch, heads, q_len].
  """
  # [batch, heads, q_len] -> [batch, heads, 1, q_len], as blocks want it.
  lse, delta = lse[:, :, None], delta[:, :, None]
  arrays = Arrays(q, k, v, d_out, lse, delta, operands)
  by_operand = {}
  if plan.weigh == "ones":
    # Sums of values know neither queries nor score modifications.
    d_q = jnp.zeros_like(q)
  else:
    d_q, sums = _backward_rows(plan, arrays, indices, lists)
    by_operand |= sums
    for number in of_operands.differentiated(plan, operands, "qk"):
      by_operand[number] = of_operands.dense_gradient(
        plan, arrays, indices, lists, number
      )
  d_k, d_v, sums = _backward_columns(plan, arrays, indices, lists)
  by_operand |= sums
  d_operands = [by_operand.get(i) for i in range(plan.mod_operands)]
  return d_q, d_k, d_v, d_operands


def _backward_rows(plan: Plan, arrays: Arrays, indices, lists):
  """The gradient of the queries and of what belongs to queries."""
  q, k, v = arrays[:3]
  grid = Grid(plan, q, k, v, lists, by_rows=True)
  numbers = of_operands.differentiated(plan, arrays.operands, "", "q")

  def kernel(grid, scalars, inputs, outputs, scratch):
    step, last = pl.program_id(3), grid.size[3] - 1

    @pl.when(step == 0)
    def _():
      scratch.d_q[...] = jnp.zeros(scratch.d_q.shape, jnp.float32)
      for ref in outputs.operands:
        ref[...] = jnp.zeros(ref.shape, jnp.float32)
      for column, row in (
        (scratch.lse, inputs.lse),
        (scratch.delta, inputs.delta),
      ):
        column[...] = jnp.broadcast_to(tiles.as_column(row[...]), column.shape)

    # A tile's part is [queries, keys].
    def process(tile, rows, masked):
      values = grid.values(inputs.operands, rows)
      raw = tiles.scaled(plan, inputs.q[rows, :], inputs.k[...])
      score, pull = tiles.modify_with_gradient(plan, raw, tile, values)
      visible = plan.visible(tile, values) if masked else None
      d_weight = tiles.product_transposed(
        plan, inputs.d_out[rows, :], inputs.v[...]
      )
      _, (d_raw, d_values) = tiles.score_gradient(
        plan,
        score,
        pull,
        visible,
        d_weight,
        tiles.wide(scratch.lse[rows, :], plan.block_k),
        tiles.wide(scratch.delta[rows, :], plan.block_k),
      )
      scratch.d_q[rows, :] += tiles.product(plan, d_raw, inputs.k[...])
      of_operands.accumulate(outputs.operands, numbers, plan, d_values, rows)

    grid.on_tile(scalars, process)

    @pl.when(step == last)
    def _():
      # The scale once at the end instead of on every tile.
      d_q = scratch.d_q[...] * plan.scale
      outputs.d_q[...] = d_q.astype(outputs.d_q.dtype)

  depth, width = q.shape[-1], v.shape[-1]
  d_q, sums = grid.call(
    kernel,
    "flash_backward_rows",
    indices,
    arrays,
    _RowOutputs(
      Blocked(jax.ShapeDtypeStruct(q.shape, q.dtype), grid.q_spec(depth)),
      of_operands.sums(grid, numbers),
    ),
    _RowScratch(
      d_q=(plan.block_q, depth),
      lse=(plan.block_q, LANES),
      delta=(plan.block_q, LANES),
    ),
    products=(depth, width, depth),
  )
  return d_q, of_operands.collected(plan, numbers, sums)


def _backward_columns(plan: Plan, arrays: Arrays, indices, lists):
  """The gradients of keys, values and of what belongs to keys."""
  q, k, v = arrays[:3]
  grid = Grid(plan, q, k, v, lists, by_rows=False)
  numbers = of_operands.differentiated(plan, arrays.operands, "k")
  scored = plan.weigh != "ones"

  def kernel(grid, scalars, inputs, outputs, scratch):
    step, last = pl.program_id(3), grid.size[3] - 1

    @pl.when(step == 0)
    def _():
      for ref in (*scratch, *outputs.operands):
        ref[...] = jnp.zeros(ref.shape, jnp.float32)

    # A tile's part is [keys, queries]: `rows` are keys.
    def process(tile, rows, masked):
      values = grid.values(inputs.operands, rows)
      visible = plan.visible(tile, values) if masked else None
      if not scored:
        weights = jnp.ones((grid.part, plan.block_q), jnp.float32)
        if masked:
          weights = jnp.where(visible, weights, 0.0)
      else:
        raw = tiles.scaled(plan, inputs.k[rows, :], inputs.q[...])
        score, pull = tiles.modify_with_gradient(plan, raw, tile, values)
        d_weight = tiles.product_transposed(
          plan, inputs.v[rows, :], inputs.d_out[...]
        )
        # Statistics [1, queries] spread over keys as they are.
        weights, (d_raw, d_values) = tiles.score_gradient(
          plan,
          score,
          pull,
          visible,
          d_weight,
          inputs.lse[...],
          inputs.delta[...],
        )
        scratch.d_k[rows, :] += tiles.product(plan, d_raw, inputs.q[...])
        of_operands.accumulate(outputs.operands, numbers, plan, d_values, rows)
      scratch.d_v[rows, :] += tiles.product(plan, weights, inputs.d_out[...])

    grid.on_tile(scalars, process)

    @pl.when(step == last)
    def _():
      d_k = scratch.d_k[...] * plan.scale
      outputs.d_k[...] = d_k.astype(outputs.d_k.dtype)
      outputs.d_v[...] = scratch.d_v[...].astype(outputs.d_v.dtype)

  depth, width = q.shape[-1], v.shape[-1]
  # Query heads that share a key head leave parts that are summed afterwards:
  # they are different rows of the grid, perhaps on different cores.
  lead = (*q.shape[:2], k.shape[2])
  d_k, d_v = (
    Blocked(
      jax.ShapeDtypeStruct((*lead, x.shape[-1]), _partial_dtype(q, x)),
      grid.per_head_k_spec(x.shape[-1]),
    )
    for x in (k, v)
  )
  d_k, d_v, sums = grid.call(
    kernel,
    "flash_backward_columns",
    indices,
    arrays,
    _ColumnOutputs(d_k, d_v, of_operands.sums(grid, numbers)),
    _ColumnScratch(d_k=(plan.block_k, depth), d_v=(plan.block_k, width)),
    products=(depth, width, depth, width),
  )
  return (
    _over_groups(d_k, k),
    _over_groups(d_v, v),
    of_operands.collected(plan, numbers, sums),
  )


def _partial_dtype(q, x):
  """Rounded once: parts that are still to be summed stay float32."""
  return x.dtype if q.shape[1] == x.shape[1] else jnp.float32


def _over_groups(gradient, x):
  """Sums [batch, heads, ...] over the query heads that share a head of x."""
  if gradient.shape[1] == x.shape[1]:
    return gradient
  batch, heads, *rest = gradient.shape
  parts = gradient.reshape(batch, x.shape[1], heads // x.shape[1], *rest)
  return jnp.sum(parts, axis=2).astype(x.dtype)
