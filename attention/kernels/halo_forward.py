"""The forward pass of halo attention on TPUs."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels import halo_tiles as tiles
from attention.kernels.halo_plan import Plan, head_masks, own_rows

# Blocks and groups that one turn of the loop works on.
UNROLL = 2


def forward(plan: Plan, q, k, v, positions):
  """Returns the output and the log-sum-exp of scores times log2(e).

  Args:
    plan: the shapes.
    q: images in `plan.query_shape`.
    k: images in `plan.key_shape`.
    v: images in `plan.value_shape`.
    positions: [position_keys, lanes] of `pack_positions`.
  """
  bits, _ = head_masks(plan, plan.dim, plan.lanes)
  _, out_mask = head_masks(plan, plan.v_dim, plan.v_lanes)
  constants = (positions, own_rows(plan), bits, out_mask)
  image = functools.partial(tiles.image_spec, plan)
  return pl.pallas_call(
    functools.partial(_kernel, plan=plan),
    name="halo_attention_forward",
    out_shape=[
      jax.ShapeDtypeStruct(plan.out_shape, q.dtype),
      jax.ShapeDtypeStruct(plan.sums_shape, jnp.float32),
    ],
    grid=tiles.grid_of(plan),
    in_specs=[
      image(plan.query_shape, plan.side),
      image(plan.key_shape),
      image(plan.value_shape),
      *map(tiles.whole_spec, constants),
    ],
    out_specs=[image(plan.out_shape, plan.side), image(plan.sums_shape, 1)],
    scratch_shapes=[
      pltpu.VMEM(plan.query_scratch(plan.lanes), jnp.float32),
      pltpu.VMEM(plan.key_scratch(plan.lanes), jnp.float32),
      pltpu.VMEM(plan.key_scratch(plan.v_lanes), jnp.float32),
      pltpu.VMEM(plan.query_scratch(plan.v_lanes), jnp.float32),
    ],
    compiler_params=tiles.compiler_params(plan, "forward"),
    cost_estimate=_cost(plan),
    interpret=plan.interpret,
  )(q, k, v, *constants)


def _cost(plan: Plan) -> pl.CostEstimate:
  blocks = plan.batch * plan.rows * plan.columns * plan.groups
  scores = plan.keys * plan.stacked
  macs = scores * (plan.lanes + plan.v_lanes)
  macs += plan.position_keys * plan.stacked * plan.lanes
  shapes = (plan.query_shape, plan.key_shape, plan.value_shape, plan.out_shape)
  images = sum(map(math.prod, shapes)) * plan.itemsize
  return pl.CostEstimate(
    flops=2 * blocks * macs,
    bytes_accessed=images + 4 * math.prod(plan.sums_shape),
    transcendentals=blocks * (scores + plan.stacked),
  )


def _kernel(
  q_ref,
  k_ref,
  v_ref,
  positions_ref,
  own_rows_ref,
  bits_ref,
  out_mask_ref,
  out_ref,
  sums_ref,
  q_scratch,
  k_scratch,
  v_scratch,
  out_scratch,
  *,
  plan: Plan,
):
  # Outside of loops, where the interpreter knows it.
  strip = pl.program_id(2)

  @pl.when(tiles.first_step())
  def _():
    for x in (q_scratch, k_scratch, v_scratch):
      x[...] = jnp.zeros_like(x)

  tiles.fill_queries(plan, q_ref, q_scratch, plan.dim)
  tiles.fill_keys(plan, k_ref, k_scratch, strip, plan.dim)
  tiles.fill_keys(plan, v_ref, v_scratch, strip, plan.v_dim)

  def attend(column, group):
    q = tiles.load_queries(plan, q_scratch, group, column)
    k = tiles.load_keys(plan, k_scratch, group, column)
    scores = tiles.scores(
      plan,
      (strip, column),
      tiles.stack(plan, q, bits_ref[...]),
      jnp.concatenate([k, positions_ref[...]]),
      own_rows_ref,
    )
    maxima = jnp.max(scores, axis=0, keepdims=True)
    weights = jnp.exp2(scores - maxima)
    sums = jnp.sum(weights, axis=0, keepdims=True)
    weights = weights * (1.0 / sums)
    v = tiles.load_keys(plan, v_scratch, group, column)
    out = tiles.product(plan, weights, v, (0, 0))
    out = tiles.unstack(plan, out, out_mask_ref[...])
    tiles.store_queries(plan, out_scratch, group, column, out)
    row = pl.ds(column * plan.groups + group, 1)
    sums_ref[0, 0, row, :] = maxima + jnp.log2(sums)

  tiles.for_blocks(plan, attend, UNROLL)
  tiles.drain_queries(plan, out_scratch, out_ref, plan.v_dim)
