"""The gradients of block and grid attention on TPUs.

With e the weights before division by their sums l, o the output and g its
gradient,

  g' = g / l,  delta = sum over a head of g' o,  ds = e (g' v^T - delta)
  dq = scale ds k,  dk = scale ds^T q,  dv = e^T g',  dbias = sum of ds

The scores are computed twice, once with queries in rows and the heads' keys
side by side, for dq and dbias, and once with keys in rows and the heads'
queries side by side, for dk and dv: cheaper than a transposition.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels import window_tiles as tiles
from attention.kernels.window_plan import (
  Plan,
  head_masks,
  pack_bias,
  unpack_bias,
)


def backward(plan: Plan, q, k, v, bias, out_bar):
  """Returns the gradients of `forward`; that of the bias in float32."""
  bits, sums = head_masks(plan)
  packed = pack_bias(plan, bias)
  transposed = None if bias is None else bias.swapaxes(1, 2)
  constants = (packed, pack_bias(plan, transposed), sums, bits)
  image = tiles.block_spec(plan)
  image_shape = jax.ShapeDtypeStruct(plan.image_shape, q.dtype)
  out_shape, out_specs = [image_shape] * 3, [image] * 3
  scratch = [pltpu.VMEM(plan.scratch_shape, jnp.float32)] * 7
  if plan.has_bias:
    # Each core has a sum of its own.
    block = (1, plan.step_groups, *plan.bias_shape[1:])
    if plan.batch_minor:
      index = lambda group, *_: (0, group, 0, 0)
    else:
      index = lambda core, *_: (core, 0, 0, 0)
    shape = (plan.cores, *plan.bias_shape)
    out_shape += [jax.ShapeDtypeStruct(shape, jnp.float32)]
    out_specs += [pl.BlockSpec(block, index)]
    scratch += [pltpu.VMEM(block[1:], jnp.float32)]
  results = pl.pallas_call(
    functools.partial(_kernel, plan=plan),
    name="window_attention_backward",
    out_shape=out_shape,
    grid=tiles.grid_of(plan),
    in_specs=[image] * 4
    + [tiles.group_spec(plan, x) for x in constants[:3]]
    + [tiles.whole_spec(bits)],
    out_specs=out_specs,
    scratch_shapes=scratch,
    compiler_params=tiles.compiler_params(plan),
    cost_estimate=_cost(plan),
    interpret=plan.interpret,
  )(q, k, v, out_bar, *constants)
  if not plan.has_bias:
    return *results, None
  return *results[:3], unpack_bias(plan, jnp.sum(results[3], axis=0))


def _cost(plan: Plan) -> pl.CostEstimate:
  windows = plan.batch * plan.rows * plan.columns * plan.groups
  scores = windows * plan.queries * plan.stacked
  image = math.prod(plan.image_shape) * jnp.dtype(plan.dtype).itemsize
  return pl.CostEstimate(
    # Eleven full products and one of 8 rows.
    flops=2 * scores * plan.lanes * 11
    + 2 * windows * 8 * plan.stacked * plan.lanes,
    bytes_accessed=7 * image,
    transcendentals=2 * scores + windows * plan.queries * plan.lanes,
  )


def _kernel(
  q_ref,
  k_ref,
  v_ref,
  out_bar_ref,
  bias_ref,
  transposed_bias_ref,
  sums_ref,
  bits_ref,
  q_bar_ref,
  k_bar_ref,
  v_bar_ref,
  *rest,
  plan: Plan,
):
  bias_bar_ref = rest[0] if plan.has_bias else None
  scratch = rest[1:8] if plan.has_bias else rest
  bias_bar_scratch = rest[8] if plan.has_bias else None
  refs = (q_ref, k_ref, v_ref, out_bar_ref)
  inputs = tuple(zip(refs, scratch[:4], strict=True))
  refs = (q_bar_ref, k_bar_ref, v_bar_ref)
  outputs = tuple(zip(refs, scratch[4:], strict=True))
  exponent_scale = plan.scale * math.log2(math.e)

  first_channel = tiles.first_channel(plan)

  @pl.when(tiles.first_step())
  def _():
    for _, x in inputs:
      x[...] = jnp.zeros_like(x)
    if plan.has_bias:
      bias_bar_ref[...] = jnp.zeros_like(bias_bar_ref)

  def gradients(window, group, subtract_maxima):
    """Writes three gradients; returns the row sums and that of the bias."""
    heads = plan.stacked_heads(group)
    keys = slice(0, heads * plan.keys)
    stack = lambda x: tiles.stack(plan, x, bits_ref[...], heads)
    q, k, v, out_bar = (tiles.load(plan, x, group, window) for _, x in inputs)
    all_keys, all_values, head_sums = stack(k), stack(v), sums_ref[group, keys]

    # Queries in rows: [queries, heads * keys].
    scores = tiles.product(plan, q, all_keys, transposed=True)
    scores = scores * exponent_scale + bias_ref[group, :, keys]
    if subtract_maxima:
      scores = tiles.subtract_maxima(plan, scores)
    weights = jnp.exp2(scores)
    sums = tiles.product(plan, weights, head_sums)
    inverse = tiles.reciprocal(plan, sums)
    out = tiles.product(plan, weights, all_values) * inverse
    # The same rounded numbers in all products: then the gradients of the
    # scores of a query sum to zero.
    out_bar = (out_bar * inverse).astype(plan.dtype).astype(jnp.float32)
    delta = out_bar * out
    scores_bar = weights * (
      tiles.product(plan, out_bar, all_values, transposed=True)
      - tiles.product(plan, delta, head_sums, transposed=True)
    )
    q_bar = tiles.product(plan, scores_bar, all_keys) * plan.scale

    # Keys in rows: [keys, heads * queries].
    all_queries, all_out_bar = stack(q), stack(out_bar)
    transposed = tiles.product(plan, k, all_queries, transposed=True)
    transposed = (
      transposed * exponent_scale + transposed_bias_ref[group, :, keys]
    )
    if subtract_maxima:
      # Padded keys are not masked here but their rows are not stored.
      transposed -= _column_maxima(plan, transposed)
    weights = jnp.exp2(transposed)
    v_bar = tiles.product(plan, weights, all_out_bar)
    ones = jnp.ones((8, plan.lanes), jnp.float32)
    deltas = tiles.product(plan, ones, stack(delta), transposed=True)[:1]
    values_out = tiles.product(plan, v, all_out_bar, transposed=True)
    transposed_bar = weights * (values_out - deltas)
    k_bar = tiles.product(plan, transposed_bar, all_queries) * plan.scale

    for (_, x), value in zip(outputs, (q_bar, k_bar, v_bar), strict=True):
      tiles.store(plan, x, group, window, value)
    return sums, scores_bar

  def run(good, subtract_maxima, unroll):
    """Does all strips; zeroes `good` where row sums are extreme."""
    if plan.has_bias:
      bias_bar_scratch[...] = jnp.zeros_like(bias_bar_scratch)

    def windows_body(windows, good):
      for group in range(plan.step_groups):
        bias_bar = None
        for window in windows:
          sums, scores_bar = gradients(window, group, subtract_maxima)
          if not subtract_maxima:
            good = tiles.in_range(sums, good)
          bias_bar = scores_bar if bias_bar is None else bias_bar + scores_bar
        if plan.has_bias:
          keys = slice(0, bias_bar.shape[1])
          bias_bar_scratch[group, :, keys] += bias_bar
      return good

    def strip_body(strip, good):
      for ref, x in inputs:
        tiles.fill(plan, ref, x, strip, first_channel)
      good = tiles.for_windows(plan, windows_body, good, unroll)
      for ref, x in outputs:
        tiles.drain(plan, x, ref, strip)
      return good

    return tiles.for_strips(plan, strip_body, good)

  # As in the forward pass: maxima only where row sums are extreme.
  good = jnp.ones((8, plan.lanes), jnp.float32)
  good = run(good, subtract_maxima=False, unroll=plan.unroll)

  @pl.when(jnp.logical_not(tiles.all_good(good)))
  def _():
    run(jnp.ones_like(good), subtract_maxima=True, unroll=1)

  if plan.has_bias:
    bias_bar_ref[0] += bias_bar_scratch[...]


def _column_maxima(plan: Plan, scores):
  """Returns [1, heads * queries], the maxima over the keys that exist."""
  row = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  real = row % plan.padded_run < plan.run
  return jnp.max(jnp.where(real, scores, -jnp.inf), axis=0, keepdims=True)
