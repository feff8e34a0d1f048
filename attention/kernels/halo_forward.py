"""The forward pass of halo attention on TPUs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from attention.kernels import halo_call, tpu
from attention.kernels import halo_tiles as tiles
from attention.kernels.halo_plan import Plan, head_masks, own_rows

# Blocks and groups that one turn of the loop works on.
UNROLL = 2


class _Inputs(NamedTuple):
  """Parts of images, and what is the same for all of them.

  Attributes:
    q: a strip [1, side, width / stride, channels].
    k, v: a whole image [1, height, width, channels]: strips overlap.
    positions: position keys [R, N D].
    own_rows: of `halo_plan.own_rows`, [axes, 8, N Q].
    bits: of `head_masks`, cuts a stack of queries down to its blocks.
    out_mask: of `head_masks`, [N Q, lanes of values] of zeros and ones.
  """

  q: Any
  k: Any
  v: Any
  positions: Any
  own_rows: Any
  bits: Any
  out_mask: Any


class _Outputs(NamedTuple):
  """A strip of the output, and the log-sum-exps of its blocks as rows."""

  out: Any
  sums: Any


class _Scratch(NamedTuple):
  """A strip of queries and outputs, and the rows of keys that it sees.

  Filled anew for each strip. Only the zeros in halos at the sides go on.
  """

  q: Any
  k: Any
  v: Any
  out: Any


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
      *map(tpu.whole, (positions, own_rows(plan), bits, out_mask)),
    ),
    _Outputs(
      halo_call.strips(plan, out, plan.side), halo_call.strips(plan, sums, 1)
    ),
    _Scratch(
      q=plan.query_scratch(plan.lanes),
      k=plan.key_scratch(plan.lanes),
      v=plan.key_scratch(plan.v_lanes),
      out=plan.query_scratch(plan.v_lanes),
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
  tiles.fill_keys(plan, inputs.k, scratch.k, strip, plan.dim)
  tiles.fill_keys(plan, inputs.v, scratch.v, strip, plan.v_dim)

  def attend(column, group):
    # [Q, N D], of which `scores` takes the block-diagonal [N Q, N D].
    q = tiles.load_queries(plan, scratch.q, group, column)
    k = tiles.load_keys(plan, scratch.k, group, column)
    scores = tiles.scores(
      plan,
      (strip, column),
      tiles.stack(plan, q, inputs.bits[...]),
      jnp.concatenate([k, inputs.positions[...]]),
      inputs.own_rows,
    )
    # Scores are [K, N Q]: maxima and sums over keys are rows [1, N Q].
    maxima = jnp.max(scores, axis=0, keepdims=True)
    weights = jnp.exp2(scores - maxima)
    sums = jnp.sum(weights, axis=0, keepdims=True)
    # Divided before the product: its result has queries in rows, and to turn
    # the sums into a column would move them between lanes.
    weights = weights * (1.0 / sums)
    v = tiles.load_keys(plan, scratch.v, group, column)
    # [K, N Q]^T [K, lanes] -> [N Q, lanes] -> [Q, lanes]
    out = tiles.product(plan, weights, v, (0, 0))
    out = tiles.unstack(plan, out, inputs.out_mask[...])
    tiles.store_queries(plan, scratch.out, group, column, out)
    # In base two, as the backward pass wants it.
    row = pl.ds(column * plan.groups + group, 1)
    outputs.sums[0, 0, row, :] = maxima + jnp.log2(sums)

  tiles.for_blocks(plan, attend, UNROLL)
  tiles.drain_queries(plan, scratch.out, outputs.out, plan.v_dim)
