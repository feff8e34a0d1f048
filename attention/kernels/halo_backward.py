"""The gradients of halo attention on TPUs.

With p the weights, from the scores and the saved log-sum-exp, and g the
gradient of the output,

  dp = v g^T,  ds = p (dp - sum over keys of p dp)
  dv = p g,  dk = scale ds q,  dq = scale ds^T k + positions

Windows overlap, so that a key has gradients from several blocks. All blocks of
an image are visited in order by the same core, which adds them up in VMEM and
writes a row when no later block sees it: there is one order of summation.

Shapes in comments: N heads of a group, Q rows of a block's queries, K rows of a
window's keys, R position keys, D channels of a head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from attention.kernels import halo_call, tpu
from attention.kernels import halo_tiles as tiles
from attention.kernels.halo_plan import Plan, head_masks, own_rows, row_sums


class _Inputs(NamedTuple):
  """Parts of images, and what is the same for all of them.

  Attributes:
    q, out_bar: strips [1, side, width / stride, channels].
    k, v: a whole image [1, height, width, channels]: strips overlap.
    sums: log-sum-exps of the forward pass, a row [N Q] for each block and group
      of the strip.
    positions: position keys [R, N D].
    own_rows: of `halo_plan.own_rows`, [axes, 8, N Q].
    row_sums: of `halo_plan.row_sums`, [padded_window, K] of zeros and ones.
    bits, v_bits: of `head_masks`, cut stacks of queries and of output gradients
      down to their blocks.
  """

  q: Any
  k: Any
  v: Any
  out_bar: Any
  sums: Any
  positions: Any
  own_rows: Any
  row_sums: Any
  bits: Any
  v_bits: Any


class _Outputs(NamedTuple):
  """A strip, two whole images, and a sum over all steps of a core."""

  q_bar: Any
  k_bar: Any
  v_bar: Any
  positions_bar: Any


class _Scratch(NamedTuple):
  """A strip of queries and outputs, and the rows of keys that it sees.

  `k_bar` and `v_bar` carry the sums of the rows that the next strip sees too;
  `drain_keys` moves them there. The others are filled anew for each strip, the
  last two, of scores of positions and of their gradients, for each block.
  """

  q: Any
  k: Any
  v: Any
  out_bar: Any
  q_bar: Any
  k_bar: Any
  v_bar: Any
  positions: Any
  positions_bar: Any


def backward(plan: Plan, q, k, v, positions, sums, out_bar):
  """Returns the gradients to q, k, v and, in float32, position keys."""
  bits = head_masks(plan, plan.dim, plan.lanes)
  v_bits = head_masks(plan, plan.v_dim, plan.v_lanes)
  constants = (positions, own_rows(plan), row_sums(plan), bits, v_bits)
  q_bar, k_bar, v_bar = (
    jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)
  )
  bars = halo_call.call(
    plan,
    _kernel,
    "halo_attention_backward",
    "backward",
    _Inputs(
      halo_call.strips(plan, q, plan.side),
      halo_call.whole_image(plan, k),
      halo_call.whole_image(plan, v),
      halo_call.strips(plan, out_bar, plan.side),
      halo_call.strips(plan, sums, 1),
      *map(tpu.whole, constants),
    ),
    _Outputs(
      halo_call.strips(plan, q_bar, plan.side),
      halo_call.whole_image(plan, k_bar),
      halo_call.whole_image(plan, v_bar),
      halo_call.position_sums(plan),
    ),
    _Scratch(
      q=plan.query_scratch(plan.lanes),
      k=plan.key_scratch(plan.lanes),
      v=plan.key_scratch(plan.v_lanes),
      out_bar=plan.query_scratch(plan.v_lanes),
      q_bar=plan.query_scratch(plan.lanes),
      k_bar=plan.key_scratch(plan.lanes),
      v_bar=plan.key_scratch(plan.v_lanes),
      positions=plan.position_scratch,
      positions_bar=plan.position_bar_scratch,
    ),
    key_macs=3 * plan.lanes + 2 * plan.v_lanes + plan.padded_window,
    position_products=3,
    exponentials=plan.keys,
  )
  # The cores' own sums, always in the same order.
  return bars._replace(positions_bar=jnp.sum(bars.positions_bar, axis=0))


def _kernel(inputs: _Inputs, outputs: _Outputs, scratch: _Scratch, plan: Plan):
  # Outside of loops, where the interpreter knows it.
  strip = pl.program_id(2)
  read = (scratch.q, scratch.k, scratch.v, scratch.out_bar)
  sums = (scratch.k_bar, scratch.v_bar, outputs.positions_bar)
  tiles.clear_at_first_step((*read, scratch.positions_bar, *sums))
  tiles.fill_queries(plan, inputs.q, scratch.q, plan.dim)
  tiles.fill_queries(plan, inputs.out_bar, scratch.out_bar, plan.v_dim)
  tiles.fill_keys(
    plan,
    strip,
    (inputs.k, scratch.k, plan.dim),
    (inputs.v, scratch.v, plan.v_dim),
  )

  def gradients(column, group, slot):
    # [Q, lanes] -> block-diagonal [N Q, lanes]
    q = tiles.load_queries(plan, scratch.q, group, column)
    q = tiles.stack(plan, q, inputs.bits[...])
    out_bar = tiles.load_queries(plan, scratch.out_bar, group, column)
    out_bar = tiles.stack(plan, out_bar, inputs.v_bits[...])
    # [K, lanes]; keys of all heads side by side, position keys above them.
    k = tiles.load_keys(plan, scratch.k, group, column)
    v = tiles.load_keys(plan, scratch.v, group, column)
    k = jnp.concatenate([inputs.positions[...], k])
    weights_bar = tiles.product(plan, v, out_bar, (1, 1))
    sums = inputs.sums[0, 0, pl.ds(column * plan.groups + group, 1), :]
    scores = tiles.scores(
      plan,
      (strip, column),
      q,
      k,
      inputs.own_rows,
      scratch.positions.at[slot],
      sums,
    )
    yield
    # [K, N Q]; exactly 0 where no key is, since MASKED is far below any sum.
    weights = jnp.exp2(scores)
    # The product with a block-diagonal stack has each head in its own lanes.
    v_bar = tiles.product(plan, weights, out_bar)
    tiles.add_keys(plan, scratch.v_bar, group, column, v_bar)

    # From the weights rather than from the output: a sum over rows, where the
    # output's would go along lanes, head by head.
    delta = jnp.sum(weights * weights_bar, axis=0, keepdims=True)
    scores_bar = weights * (weights_bar - delta)
    of_positions = tiles.position_gradients(
      plan,
      scores_bar,
      inputs.own_rows,
      inputs.row_sums[...],
      scratch.positions_bar.at[slot],
    )
    yield
    # [R + K, N Q], so that keys and position keys are one product each way.
    scores_bar = jnp.concatenate([of_positions, scores_bar]).astype(plan.dtype)
    k_bar = tiles.product(plan, scores_bar, q)
    outputs.positions_bar[0] += k_bar[: plan.position_keys]
    k_bar = plan.scale * k_bar[plan.position_keys :]
    tiles.add_keys(plan, scratch.k_bar, group, column, k_bar)
    # [R + K, N D]^T [R + K, N Q] -> [N D, N Q] -> [Q, N D]
    q_bar = tiles.product(plan, k, scores_bar, (0, 0))
    q_bar = plan.scale * tiles.own_channels(plan, q_bar, plan.dim)
    tiles.store_queries(plan, scratch.q_bar, group, column, q_bar)

  tiles.for_blocks(plan, gradients)
  tiles.drain_queries(plan, scratch.q_bar, outputs.q_bar, plan.dim)
  tiles.drain_keys(
    plan,
    strip,
    (scratch.k_bar, outputs.k_bar, plan.dim),
    (scratch.v_bar, outputs.v_bar, plan.v_dim),
  )
