"""The forward pass of halo attention on TPUs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from attention.kernels import halo_call, tpu
from attention.kernels import halo_tiles as tiles
from attention.kernels.halo_plan import Plan, head_masks, own_rows

# Up to this log2 of a sum, weights are as exact without maxima subtracted: none
# that counts vanishes, nothing overflows. Scores are beyond 69 in nats rarely.
PLAIN = 100.0


class _Inputs(NamedTuple):
  """Parts of images, and what is the same for all of them.

  Attributes:
    q: a strip [1, side, width / stride, channels].
    k, v: a whole image [1, height, width, channels]: strips overlap.
    positions: position keys [R, N D].
    own_rows: of `halo_plan.own_rows`, [axes, 8, N Q].
    bits: of `head_masks`, cuts a stack of queries down to its blocks.
  """

  q: Any
  k: Any
  v: Any
  positions: Any
  own_rows: Any
  bits: Any


class _Outputs(NamedTuple):
  """A strip of the output, and the log-sum-exps of its blocks as rows."""

  out: Any
  sums: Any


class _Scratch(NamedTuple):
  """A strip of queries and outputs, and the rows of keys that it sees.

  Filled anew for each strip. Only the zeros in halos at the sides go on.
  `positions` has scores of what a turn of the loop works on.
  """

  q: Any
  k: Any
  v: Any
  out: Any
  positions: Any


def forward(plan: Plan, q, k, v, positions):
  """Returns the output and the log-sum-exp of scores times log2(e).

  Args:
    plan: the shapes.
    q: images in `plan.query_shape`.
    k: images in `plan.key_shape`.
    v: images in `plan.value_shape`.
    positions: [position_keys, lanes] of `pack_positions`.
  """
  bits = head_masks(plan, plan.dim, plan.lanes)
  out = jax.ShapeDtypeStruct(plan.out_shape, q.dtype)
  sums = jax.ShapeDtypeStruct(plan.sums_shape, jnp.float32)
  return halo_call.call(
    plan,
    _kernel,
    "halo_attention_forward",
    "forward",
    _Inputs(
      halo_call.strips(plan, q, plan.side),
      halo_call.whole_image(plan, k),
      halo_call.whole_image(plan, v),
      *map(tpu.whole, (positions, own_rows(plan), bits)),
    ),
    _Outputs(
      halo_call.strips(plan, out, plan.side), halo_call.strips(plan, sums, 1)
    ),
    _Scratch(
      q=plan.query_scratch(plan.lanes),
      k=plan.key_scratch(plan.lanes),
      v=plan.key_scratch(plan.v_lanes),
      out=plan.query_scratch(plan.v_lanes),
      positions=plan.position_scratch,
    ),
    key_macs=plan.lanes + plan.v_lanes,
    position_products=1,
    # One row more for the reciprocals.
    exponentials=plan.keys + 1,
  )


def _kernel(inputs: _Inputs, outputs: _Outputs, scratch: _Scratch, plan: Plan):
  # Outside of loops, where the interpreter knows it.
  strip = pl.program_id(2)
  tiles.clear_at_first_step((scratch.q, scratch.k, scratch.v))
  tiles.fill_queries(plan, inputs.q, scratch.q, plan.dim)
  tiles.fill_keys(
    plan,
    strip,
    (inputs.k, scratch.k, plan.dim),
    (inputs.v, scratch.v, plan.v_dim),
  )

  def attend(column, group, slot, subtract_maxima):
    # [Q, N D], of which `scores` takes the block-diagonal [N Q, N D].
    q = tiles.load_queries(plan, scratch.q, group, column)
    k = tiles.load_keys(plan, scratch.k, group, column)
    scores = tiles.scores(
      plan,
      (strip, column),
      tiles.stack(plan, q, inputs.bits[...]),
      jnp.concatenate([inputs.positions[...], k]),
      inputs.own_rows,
      scratch.positions.at[slot],
    )
    yield
    # Scores are [K, N Q]: maxima and sums over keys are rows [1, N Q].
    maxima = 0.0
    if subtract_maxima:
      maxima = jnp.max(scores, axis=0, keepdims=True)
      scores -= maxima
    weights = jnp.exp2(scores)
    sums = jnp.sum(weights, axis=0, keepdims=True)
    v = tiles.load_keys(plan, scratch.v, group, column)
    # [K, lanes]^T [K, N Q] -> [lanes, N Q]: of the two, values are the smaller
    # to turn around, and the sums are a row that divides it as it lies.
    out = tiles.product(plan, v, weights, (0, 0)) * (1.0 / sums)
    out = tiles.own_channels(plan, out, plan.v_dim)
    tiles.store_queries(plan, scratch.out, group, column, out)
    # In base two, as the backward pass wants it.
    row = pl.ds(column * plan.groups + group, 1)
    outputs.sums[0, 0, row, :] = maxima + jnp.log2(sums)

  plain = functools.partial(attend, subtract_maxima=False)
  tiles.for_blocks(plan, plain)
  tiles.drain_queries(plan, scratch.out, outputs.out, plan.v_dim)

  @pl.when(jnp.logical_not(jnp.max(jnp.abs(outputs.sums[0, 0])) < PLAIN))
  def _():
    # Rare, so small code rather than fast code.
    careful = functools.partial(attend, subtract_maxima=True)
    tiles.for_groups(plan, careful)
    tiles.drain_queries(plan, scratch.out, outputs.out, plan.v_dim)
