"""The backward pass of flash attention on TPU.

In the kernel for keys and values a tile of scores lies on its side, [keys,
queries]: both its products then contract the axis they have at hand, and the
statistics of a row are a row. Score modifications and masks are elementwise and
never notice.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attention.kernels import flash_plan as planning
from attention.kernels.flash_plan import Plan
from attention.kernels.flash_tpu_grid import (
  LANES,
  Grid,
  TileGrid,
  product,
  product_transposed,
  scaled,
  steps,
  wide,
)


def backward(
  plan: Plan,
  q: Array,
  k: Array,
  v: Array,
  operands: Sequence[Array],
  indices: tuple[Array, Array],
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
    lse: log-sum-exp, MASKED for rows to be left out, [batch, heads, q_len].
    delta: what the gradient of a weight loses, [batch, heads, q_len].
  """
  lse, delta = lse[:, :, None], delta[:, :, None]
  arguments = (plan, q, k, v, operands, indices, lists, d_out, lse, delta)
  d_operands = [None] * plan.mod_operands
  if plan.weigh == "ones":
    d_q, d_k = jnp.zeros_like(q), None
  else:
    d_q, row_gradients = _backward_rows(*arguments)
    d_operands = _merged(d_operands, row_gradients)
    d_operands = _merged(d_operands, _backward_tiles(*arguments))
  d_k, d_v, column_gradients = _backward_columns(*arguments)
  return d_q, d_k, d_v, _merged(d_operands, column_gradients)


def _merged(a, b):
  return [x if y is None else y for x, y in zip(a, b, strict=True)]


def _score_gradient(plan, score, pull, visible, d_weight, lse, delta):
  """Returns the weights and the gradients of the raw score and the values.

  Args:
    plan: the plan.
    score: modified scores of a tile.
    pull: takes the gradient of `score` to those of what it was made of.
    visible: the mask of the tile, or None.
    d_weight: gradients of the weights.
    lse: log-sum-exp of the queries, broadcastable.
    delta: what d_weight loses, broadcastable.
  """
  if plan.weigh == "sigmoid":
    weights = jax.nn.sigmoid(score)
    slope = weights * (1 - weights)
  else:
    weights = slope = jnp.exp(score - lse)
    d_weight = d_weight - delta
  if visible is not None:
    weights = jnp.where(visible, weights, 0.0)
    slope = jnp.where(visible, slope, 0.0)
  return weights, pull(slope * d_weight)


def _modify_with_gradient(plan, raw, tile, values):
  """Returns the modified scores and their pullback.

  The gradients of the values come for each score, like `raw`: they are summed
  where it is known which kernel sums what.
  """
  number = plan.mod_operands
  floating = [
    i for i in range(number) if jnp.issubdtype(values[i].dtype, jnp.floating)
  ]
  spread = [
    jnp.broadcast_to(values[i].astype(jnp.float32), raw.shape) for i in floating
  ]

  def modified(raw, *spread):
    full = list(values)
    for i, value in zip(floating, spread, strict=True):
      full[i] = value
    return plan.modified(raw, tile, full)

  score, pull = jax.vjp(modified, raw, *spread)

  def pullback(gradient):
    d_raw, *d_spread = pull(gradient)
    d_values = [None] * number
    for i, d in zip(floating, d_spread, strict=True):
      d_values[i] = d
    return d_raw, d_values

  return score, pullback


def _gradient_outputs(grid, kinds):
  """Returns which operands a kernel sums gradients of, their specs, shapes."""
  plan = grid.plan
  numbers = [i for i in range(plan.mod_operands) if plan.inner(i) in kinds]
  specs, shapes = [], []
  for i in numbers:
    lead = (grid.batch, grid.heads)
    if plan.inner(i) == "":
      specs.append(
        grid.spec((None, None, None, 1, 1), lambda b, h, i, j: (b, h, i, 0, 0))
      )
      shape = (*lead, grid.q_len // plan.block_q, 1, 1)
    elif plan.inner(i) == "q":
      specs.append(grid.row_spec(1))
      shape = (*lead, grid.q_len, 1)
    else:
      specs.append(grid.column_spec(1))
      shape = (*lead, grid.kv_len, 1)
    shapes.append(jax.ShapeDtypeStruct(shape, jnp.float32))
  return numbers, specs, shapes


def _collected(plan, numbers, gradients):
  """Sums gradients of some operands over what is shared, each in its place."""
  result = [None] * plan.mod_operands
  for i, gradient in zip(numbers, gradients, strict=True):
    gradient = gradient[..., 0]
    if plan.inner(i) == "":
      gradient = jnp.sum(gradient[..., 0], axis=-1)
    result[i] = planning.without_shared(gradient, plan.axes[i])
  return result


def _accumulate(refs, numbers, plan, d_values, rows):
  """Adds the gradients of the values of a tile to the outputs."""
  for ref, i in zip(refs, numbers, strict=True):
    gradient = jnp.sum(d_values[i], axis=1, keepdims=True)
    if plan.inner(i) == "":
      ref[...] += jnp.sum(gradient, axis=0, keepdims=True)
    else:
      ref[rows, :] += gradient


def _call(grid, kernel, name, indices, arrays, operands, *outputs, products):
  """Runs a kernel of the backward pass on q, k, v, d_out, lse and delta."""
  q, k, v, *_ = arrays
  in_specs = [
    grid.q_spec(q),
    grid.k_spec(k),
    grid.k_spec(v),
    grid.row_spec(v.shape[-1]),
    grid.statistic_spec(),
    grid.statistic_spec(),
  ]
  return grid.call(
    kernel, name, indices, in_specs, arrays, operands, *outputs, products
  )


def _backward_rows(plan, q, k, v, operands, indices, lists, d_out, lse, delta):
  """The gradient of the queries and of what belongs to queries."""
  grid = Grid(plan, q, k, v, lists, by_rows=True)
  numbers, specs, shapes = _gradient_outputs(grid, ("", "q"))

  @steps
  def kernel(grid, scalars, arrays, operand_refs, outputs, scratch):
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref = arrays
    d_q_ref, *gradient_refs = outputs
    d_q_sum_ref, lse_column_ref, delta_column_ref = scratch
    step, last = pl.program_id(3), grid.size[3] - 1

    @pl.when(step == 0)
    def _():
      d_q_sum_ref[...] = jnp.zeros(d_q_sum_ref.shape, jnp.float32)
      for ref in gradient_refs:
        ref[...] = jnp.zeros(ref.shape, jnp.float32)
      for column, row in (
        (lse_column_ref, lse_ref),
        (delta_column_ref, delta_ref),
      ):
        column[...] = jnp.broadcast_to(_as_column(row[...]), column.shape)

    def process(tile, rows, masked):
      values = grid.values(operand_refs, rows)
      raw = scaled(plan, q_ref[rows, :], k_ref[...])
      score, pull = _modify_with_gradient(plan, raw, tile, values)
      visible = plan.visible(tile, values) if masked else None
      d_weight = product_transposed(plan, d_out_ref[rows, :], v_ref[...])
      _, (d_raw, d_values) = _score_gradient(
        plan,
        score,
        pull,
        visible,
        d_weight,
        wide(lse_column_ref[rows, :], plan.block_k),
        wide(delta_column_ref[rows, :], plan.block_k),
      )
      d_q_sum_ref[rows, :] += product(plan, d_raw, k_ref[...])
      _accumulate(gradient_refs, numbers, plan, d_values, rows)

    grid.on_tile(scalars, process)

    @pl.when(step == last)
    def _():
      d_q_ref[...] = (d_q_sum_ref[...] * plan.scale).astype(d_q_ref.dtype)

  depth, width = q.shape[-1], v.shape[-1]
  d_q, *gradients = _call(
    grid,
    kernel,
    "flash_backward_rows",
    indices,
    (q, k, v, d_out, lse, delta),
    operands,
    [grid.row_spec(depth), *specs],
    [jax.ShapeDtypeStruct(q.shape, q.dtype), *shapes],
    [
      pltpu.VMEM((plan.block_q, depth), jnp.float32),
      pltpu.VMEM((plan.block_q, LANES), jnp.float32),
      pltpu.VMEM((plan.block_q, LANES), jnp.float32),
    ],
    products=(depth, width, depth),
  )
  return d_q, _collected(plan, numbers, gradients)


def _backward_columns(
  plan, q, k, v, operands, indices, lists, d_out, lse, delta
):
  """The gradients of keys, values and of what belongs to keys."""
  grid = Grid(plan, q, k, v, lists, by_rows=False)
  numbers, specs, shapes = _gradient_outputs(grid, ("k",))
  scored = plan.weigh != "ones"

  @steps
  def kernel(grid, scalars, arrays, operand_refs, outputs, scratch):
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref = arrays
    d_k_ref, d_v_ref, *gradient_refs = outputs
    d_k_sum_ref, d_v_sum_ref = scratch
    step, last = pl.program_id(3), grid.size[3] - 1

    @pl.when(step == 0)
    def _():
      for ref in (d_k_sum_ref, d_v_sum_ref, *gradient_refs):
        ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def process(tile, rows, masked):
      values = grid.values(operand_refs, rows)
      visible = plan.visible(tile, values) if masked else None
      if not scored:
        weights = jnp.ones((grid.part, plan.block_q), jnp.float32)
        if masked:
          weights = jnp.where(visible, weights, 0.0)
      else:
        raw = scaled(plan, k_ref[rows, :], q_ref[...])
        score, pull = _modify_with_gradient(plan, raw, tile, values)
        d_weight = product_transposed(plan, v_ref[rows, :], d_out_ref[...])
        weights, (d_raw, d_values) = _score_gradient(
          plan, score, pull, visible, d_weight, lse_ref[...], delta_ref[...]
        )
        d_k_sum_ref[rows, :] += product(plan, d_raw, q_ref[...])
        _accumulate(gradient_refs, numbers, plan, d_values, rows)
      d_v_sum_ref[rows, :] += product(plan, weights, d_out_ref[...])

    grid.on_tile(scalars, process)

    @pl.when(step == last)
    def _():
      d_k_ref[...] = (d_k_sum_ref[...] * plan.scale).astype(d_k_ref.dtype)
      d_v_ref[...] = d_v_sum_ref[...].astype(d_v_ref.dtype)

  depth, width = q.shape[-1], v.shape[-1]
  # Query heads that share a key head leave parts that are summed afterwards.
  lead = (*q.shape[:2], k.shape[2])
  d_k, d_v, *gradients = _call(
    grid,
    kernel,
    "flash_backward_columns",
    indices,
    (q, k, v, d_out, lse, delta),
    operands,
    [grid.column_spec(depth), grid.column_spec(width), *specs],
    [
      jax.ShapeDtypeStruct((*lead, depth), _partial_dtype(q, k)),
      jax.ShapeDtypeStruct((*lead, width), _partial_dtype(q, v)),
      *shapes,
    ],
    [
      pltpu.VMEM((plan.block_k, depth), jnp.float32),
      pltpu.VMEM((plan.block_k, width), jnp.float32),
    ],
    products=(depth, width, depth, width),
  )
  return (
    _over_groups(d_k, k),
    _over_groups(d_v, v),
    _collected(plan, numbers, gradients),
  )


def _partial_dtype(q, x):
  return x.dtype if q.shape[1] == x.shape[1] else jnp.float32


def _over_groups(gradient, x):
  """Sums [batch, heads, ...] over the query heads that share a head of x."""
  if gradient.shape[1] == x.shape[1]:
    return gradient
  batch, heads, *rest = gradient.shape
  parts = gradient.reshape(batch, x.shape[1], heads // x.shape[1], *rest)
  return jnp.sum(parts, axis=2).astype(x.dtype)


def _backward_tiles(plan, q, k, v, operands, indices, lists, d_out, lse, delta):
  """The gradients of operands with a number for each score."""
  numbers = [i for i in range(plan.mod_operands) if plan.inner(i) == "qk"]
  result = [None] * plan.mod_operands
  for number in numbers:
    result[number] = _dense_gradient(
      plan, q, k, v, operands, indices, lists, d_out, lse, delta, number
    )
  return result


def _dense_gradient(
  plan, q, k, v, operands, indices, lists, d_out, lse, delta, number
):
  """The gradient of one operand with a number for each score."""
  states = lists[2] if plan.listed else None
  axes = plan.axes[number]
  grid = TileGrid(plan, q, k, v, states, axes)

  @steps
  def kernel(grid, scalars, arrays, operand_refs, outputs, scratch):
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref = arrays
    (gradient_ref,) = outputs

    @pl.when(pl.program_id(3) == 0)
    def _():
      gradient_ref[...] = jnp.zeros(gradient_ref.shape, jnp.float32)

    def process(tile, rows, masked):
      values = grid.values(operand_refs, rows)
      raw = scaled(plan, q_ref[rows, :], k_ref[...])
      score, pull = _modify_with_gradient(plan, raw, tile, values)
      _, (_, d_values) = _score_gradient(
        plan,
        score,
        pull,
        plan.visible(tile, values) if masked else None,
        product_transposed(plan, d_out_ref[rows, :], v_ref[...]),
        _as_column(lse_ref[:, rows]),
        _as_column(delta_ref[:, rows]),
      )
      gradient_ref[rows, :] += d_values[number]

    grid.on_tile(scalars, process)

  _, spec = grid.operand(number, operands[number])
  (gradient,) = _call(
    grid,
    kernel,
    "flash_backward_tiles",
    indices,
    (q, k, v, d_out, lse, delta),
    operands,
    [spec],
    [jax.ShapeDtypeStruct(operands[number].shape, jnp.float32)],
    [],
    products=(q.shape[-1], v.shape[-1]),
  )
  return gradient


def _as_column(row):
  """[1, block] -> [block, 1]"""
  return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]
