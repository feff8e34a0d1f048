"""The gradients of the arrays in score modifications, on TPU.

The gradient of a score modification's array is that of each score times its
slope, summed over what shares the number. Sums over a tile go to the kernel
that goes that way: a number a query, or one for all, to the kernel along rows,
a number a key to the one along columns. An array with a number a score has no
such kernel and gets one of its own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from attention.kernels import flash_plan as planning
from attention.kernels import flash_tpu_tiles as tiles
from attention.kernels.flash_plan import Plan
from attention.kernels.flash_tpu_grid import Arrays, Grid, TileGrid
from attention.kernels.tpu import Blocked


class _Output(NamedTuple):
  gradient: Any


def differentiated(plan: Plan, operands, *inner: str) -> list[int]:
  """Returns which operands with these inner axes have a gradient."""
  return [
    i
    for i in range(plan.mod_operands)
    if plan.inner(i) in inner
    and jnp.issubdtype(operands[i].dtype, jnp.floating)
  ]


def sums(grid: Grid, numbers: Sequence[int]) -> list[Blocked]:
  """Returns the outputs for gradients of operands without "qk".

  One for each batch element and head, in float32: what is shared by them is
  added up by `collected`, in one order, as grid steps on several cores could
  not. "" has a number for each row of tiles, so that rows stay independent.
  """
  plan = grid.plan
  lead = (grid.batch, grid.heads)
  outputs = []
  for i in numbers:
    if plan.inner(i) == "":
      shape = (*lead, grid.q_len // plan.block_q, 1, 1)
      spec = grid.spec(
        (None, None, None, 1, 1), lambda b, h, i, j: (b, h, i, 0, 0)
      )
    elif plan.inner(i) == "q":
      shape, spec = (*lead, grid.q_len, 1), grid.q_spec(1)
    else:
      shape, spec = (*lead, grid.kv_len, 1), grid.per_head_k_spec(1)
    outputs.append(Blocked(jax.ShapeDtypeStruct(shape, jnp.float32), spec))
  return outputs


def accumulate(refs, numbers, plan: Plan, d_values, rows) -> None:
  """Adds the gradients of the values of a tile's part to the outputs."""
  for ref, i in zip(refs, numbers, strict=True):
    # [rows, columns] -> [rows, 1]
    gradient = jnp.sum(d_values[i], axis=1, keepdims=True)
    if plan.inner(i) == "":
      ref[...] += jnp.sum(gradient, axis=0, keepdims=True)
    else:
      ref[rows, :] += gradient


def collected(plan: Plan, numbers, gradients) -> dict[int, Array]:
  """Sums gradients of `sums` over what the operands share."""
  result = {}
  for i, gradient in zip(numbers, gradients, strict=True):
    gradient = gradient[..., 0]
    if plan.inner(i) == "":
      gradient = jnp.sum(gradient[..., 0], axis=-1)
    result[i] = planning.without_shared(gradient, plan.axes[i])
  return result


def dense_gradient(
  plan: Plan, arrays: Arrays, indices, lists, number: int
) -> Array:
  """Returns the gradient of one operand with a number for each score."""
  states = lists[2] if plan.listed else None
  grid = TileGrid(plan, arrays.q, arrays.k, arrays.v, states, plan.axes[number])

  def kernel(grid, scalars, inputs, outputs, scratch):
    del scratch  # The output's block itself stays in place.

    # Axis 3 is what shares the tile: at its first step nothing is there yet.
    @pl.when(pl.program_id(3) == 0)
    def _():
      outputs.gradient[...] = jnp.zeros(outputs.gradient.shape, jnp.float32)

    def process(tile, rows, masked):
      values = grid.values(inputs.operands, rows)
      raw = tiles.scaled(plan, inputs.q[rows, :], inputs.k[...])
      score, pull = tiles.modify_with_gradient(plan, raw, tile, values)
      _, (_, d_values) = tiles.score_gradient(
        plan,
        score,
        pull,
        plan.visible(tile, values) if masked else None,
        tiles.product_transposed(plan, inputs.d_out[rows, :], inputs.v[...]),
        # One use each a step: not worth the scratch of the kernel along rows.
        tiles.as_column(inputs.lse[:, rows]),
        tiles.as_column(inputs.delta[:, rows]),
      )
      outputs.gradient[rows, :] += d_values[number]

    grid.on_tile(scalars, process)

  operand = arrays.operands[number]
  shape = jax.ShapeDtypeStruct(operand.shape, jnp.float32)
  return grid.call(
    kernel,
    "flash_backward_tiles",
    indices,
    arrays,
    # Where the operand's own blocks are.
    _Output(Blocked(shape, grid.operand(number, operand).spec)),
    None,
    products=(arrays.q.shape[-1], arrays.v.shape[-1]),
  ).gradient
