"""The gradients of halo attention on TPUs.

With p the weights, from the scores and the saved log-sum-exp, and g the
gradient of the output,

  dp = v g^T,  ds = p (dp - sum over keys of p dp)
  dv = p g,  dk = scale ds q,  dq = scale ds^T k + positions

Windows overlap, so that a key has gradients from several blocks. All blocks of
an image are visited in order by the same core, which adds them up in VMEM and
writes a row when no later block sees it: there is one order of summation.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels import halo_tiles as tiles
from attention.kernels.halo_plan import Plan, head_masks, own_rows, row_sums

UNROLL = 1


def backward(plan: Plan, q, k, v, positions, sums, out_bar):
  """Returns the gradients to q, k, v and, in float32, position keys."""
  bits, mask = head_masks(plan, plan.dim, plan.lanes)
  v_bits, _ = head_masks(plan, plan.v_dim, plan.v_lanes)
  constants = (positions, own_rows(plan), row_sums(plan), bits, v_bits, mask)
  image = functools.partial(tiles.image_spec, plan)
  strip = image(plan.query_shape, plan.side)
  positions_shape = (plan.cores, plan.position_keys, plan.lanes)
  *bars, positions_bar = pl.pallas_call(
    functools.partial(_kernel, plan=plan),
    name="halo_attention_backward",
    out_shape=[
      *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)),
      # Each core has a sum of its own.
      jax.ShapeDtypeStruct(positions_shape, jnp.float32),
    ],
    grid=tiles.grid_of(plan),
    in_specs=[
      strip,
      image(plan.key_shape),
      image(plan.value_shape),
      image(plan.out_shape, plan.side),
      image(plan.sums_shape, 1),
      *map(tiles.whole_spec, constants),
    ],
    out_specs=[
      strip,
      image(plan.key_shape),
      image(plan.value_shape),
      pl.BlockSpec((1, *positions_shape[1:]), lambda core, *_: (core, 0, 0)),
    ],
    scratch_shapes=[
      pltpu.VMEM(shape, jnp.float32)
      for shape in (
        plan.query_scratch(plan.lanes),
        plan.key_scratch(plan.lanes),
        plan.key_scratch(plan.v_lanes),
        plan.query_scratch(plan.v_lanes),
        plan.query_scratch(plan.lanes),
        plan.key_scratch(plan.lanes),
        plan.key_scratch(plan.v_lanes),
      )
    ],
    compiler_params=tiles.compiler_params(plan, "backward"),
    cost_estimate=_cost(plan),
    interpret=plan.interpret,
  )(q, k, v, out_bar, sums, *constants)
  return *bars, jnp.sum(positions_bar, axis=0)


def _cost(plan: Plan) -> pl.CostEstimate:
  blocks = plan.batch * plan.rows * plan.columns * plan.groups
  scores = plan.keys * plan.stacked
  macs = scores * (3 * plan.lanes + 2 * plan.v_lanes + plan.padded_window)
  macs += 3 * plan.position_keys * plan.stacked * plan.lanes
  shapes = (plan.query_shape, plan.key_shape, plan.value_shape)
  images = 2 * sum(map(math.prod, shapes)) + math.prod(plan.out_shape)
  return pl.CostEstimate(
    flops=2 * blocks * macs,
    bytes_accessed=images * plan.itemsize + 4 * math.prod(plan.sums_shape),
    transcendentals=blocks * scores,
  )


def _kernel(
  q_ref,
  k_ref,
  v_ref,
  out_bar_ref,
  sums_ref,
  positions_ref,
  own_rows_ref,
  row_sums_ref,
  bits_ref,
  v_bits_ref,
  mask_ref,
  q_bar_ref,
  k_bar_ref,
  v_bar_ref,
  positions_bar_ref,
  q_scratch,
  k_scratch,
  v_scratch,
  out_bar_scratch,
  q_bar_scratch,
  k_bar_scratch,
  v_bar_scratch,
  *,
  plan: Plan,
):
  # Outside of loops, where the interpreter knows it.
  strip = pl.program_id(2)

  @pl.when(tiles.first_step())
  def _():
    for x in (q_scratch, k_scratch, v_scratch, out_bar_scratch):
      x[...] = jnp.zeros_like(x)
    positions_bar_ref[...] = jnp.zeros_like(positions_bar_ref)

  @pl.when(strip == 0)
  def _():
    for x in (k_bar_scratch, v_bar_scratch):
      x[...] = jnp.zeros_like(x)

  tiles.fill_queries(plan, q_ref, q_scratch, plan.dim)
  tiles.fill_queries(plan, out_bar_ref, out_bar_scratch, plan.v_dim)
  tiles.fill_keys(plan, k_ref, k_scratch, strip, plan.dim)
  tiles.fill_keys(plan, v_ref, v_scratch, strip, plan.v_dim)

  def gradients(column, group):
    q = tiles.load_queries(plan, q_scratch, group, column)
    q = tiles.stack(plan, q, bits_ref[...])
    out_bar = tiles.load_queries(plan, out_bar_scratch, group, column)
    out_bar = tiles.stack(plan, out_bar, v_bits_ref[...])
    k = tiles.load_keys(plan, k_scratch, group, column)
    v = tiles.load_keys(plan, v_scratch, group, column)
    k = jnp.concatenate([k, positions_ref[...]])
    scores = tiles.scores(plan, (strip, column), q, k, own_rows_ref)
    sums = sums_ref[0, 0, pl.ds(column * plan.groups + group, 1), :]
    weights = jnp.exp2(scores - sums)
    v_bar = tiles.product(plan, weights, out_bar)
    tiles.add_keys(plan, v_bar_scratch, group, column, v_bar)

    weights_bar = tiles.product(plan, v, out_bar, (1, 1))
    delta = jnp.sum(weights * weights_bar, axis=0, keepdims=True)
    scores_bar = plan.scale * weights * (weights_bar - delta)
    of_positions = tiles.position_gradients(
      plan, scores_bar, own_rows_ref, row_sums_ref[...]
    )
    scores_bar = jnp.concatenate([scores_bar, of_positions]).astype(plan.dtype)
    k_bar = tiles.product(plan, scores_bar, q)
    tiles.add_keys(plan, k_bar_scratch, group, column, k_bar)
    positions_bar_ref[0] += k_bar[plan.keys :]
    q_bar = tiles.product(plan, scores_bar, k, (0, 0))
    q_bar = tiles.unstack(plan, q_bar, mask_ref[...])
    tiles.store_queries(plan, q_bar_scratch, group, column, q_bar)

  tiles.for_blocks(plan, gradients, UNROLL)
  tiles.drain_queries(plan, q_bar_scratch, q_bar_ref, plan.dim)

  tiles.drain_keys(plan, k_bar_scratch, k_bar_ref, strip, plan.dim)
  tiles.drain_keys(plan, v_bar_scratch, v_bar_ref, strip, plan.v_dim)
