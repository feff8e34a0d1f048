"""The forward pass of block and grid attention on TPUs."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels import window_tiles as tiles
from attention.kernels.window_plan import Plan, head_masks, pack_bias


def forward(plan: Plan, q, k, v, bias):
  """Returns the attention of each window of images in `plan.image_shape`."""
  bits, sums = head_masks(plan)
  packed = pack_bias(plan, bias)
  image = tiles.block_spec(plan)
  scratch = pltpu.VMEM(plan.scratch_shape, jnp.float32)
  return pl.pallas_call(
    functools.partial(_kernel, plan=plan),
    name="window_attention_forward",
    out_shape=jax.ShapeDtypeStruct(plan.image_shape, q.dtype),
    grid=tiles.grid_of(plan),
    in_specs=[image] * 3
    + [
      tiles.group_spec(plan, packed),
      tiles.whole_spec(bits),
      tiles.group_spec(plan, sums),
    ],
    out_specs=image,
    scratch_shapes=[scratch] * 4,
    compiler_params=tiles.compiler_params(plan),
    cost_estimate=_cost(plan),
    interpret=plan.interpret,
  )(q, k, v, packed, bits, sums)


def _cost(plan: Plan) -> pl.CostEstimate:
  windows = plan.batch * plan.rows * plan.columns * plan.groups
  scores = windows * plan.queries * plan.stacked
  image = math.prod(plan.image_shape) * jnp.dtype(plan.dtype).itemsize
  return pl.CostEstimate(
    flops=3 * 2 * scores * plan.lanes,
    bytes_accessed=4 * image,
    transcendentals=scores + windows * plan.queries * plan.lanes,
  )


def _kernel(
  q_ref,
  k_ref,
  v_ref,
  bias_ref,
  bits_ref,
  sums_ref,
  out_ref,
  q_scratch,
  k_scratch,
  v_scratch,
  out_scratch,
  *,
  plan: Plan,
):
  inputs = (
    (q_ref, q_scratch),
    (k_ref, k_scratch),
    (v_ref, v_scratch),
  )

  first_channel = tiles.first_channel(plan)

  @pl.when(tiles.first_step())
  def _():
    for _, scratch in inputs:
      scratch[...] = jnp.zeros_like(scratch)

  def attend(window, group, subtract_maxima):
    """Writes the output; returns the row sums [queries, lanes]."""
    heads = plan.stacked_heads(group)
    keys = slice(0, heads * plan.keys)
    q, k, v = (tiles.load(plan, x, group, window) for _, x in inputs)
    k, v = (tiles.stack(plan, x, bits_ref[...], heads) for x in (k, v))
    scores = tiles.product(plan, q, k, transposed=True)
    scores *= plan.scale * math.log2(math.e)
    scores += bias_ref[group, :, keys]
    if subtract_maxima:
      scores = tiles.subtract_maxima(plan, scores)
    weights = jnp.exp2(scores).astype(plan.dtype)
    out = tiles.product(plan, weights, v)
    sums = tiles.product(plan, weights, sums_ref[group, keys])
    tiles.store(
      plan, out_scratch, group, window, out * tiles.reciprocal(plan, sums)
    )
    return sums

  def run(good, subtract_maxima, unroll):
    """Does all strips; zeroes `good` where row sums are extreme."""

    def windows_body(windows, good):
      for window in windows:
        for group in range(plan.step_groups):
          sums = attend(window, group, subtract_maxima)
          if not subtract_maxima:
            good = tiles.in_range(sums, good)
      return good

    def strip_body(strip, good):
      for ref, scratch in inputs:
        tiles.fill(plan, ref, scratch, strip, first_channel)
      good = tiles.for_windows(plan, windows_body, good, unroll)
      tiles.drain(plan, out_scratch, out_ref, strip)
      return good

    return tiles.for_strips(plan, strip_body, good)

  # The exponential of plain scores is exact unless scores are extreme, beyond
  # 69 in nats. Whether they were shows in the row sums, and then the work is
  # done again with the maximum of each row subtracted.
  good = jnp.ones((8, plan.lanes), jnp.float32)
  good = run(good, subtract_maxima=False, unroll=plan.unroll)

  @pl.when(jnp.logical_not(tiles.all_good(good)))
  def _():
    run(jnp.ones_like(good), subtract_maxima=True, unroll=1)
