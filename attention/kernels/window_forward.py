"""The forward pass of block and grid attention on TPUs."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention.kernels import tpu, window_call
from attention.kernels import window_tiles as tiles
from attention.kernels.tpu import Blocked
from attention.kernels.window_plan import Plan, head_masks, pack_bias


class _Inputs(NamedTuple):
  """Strips of images, and what is the same for all of them.

  Attributes:
    q, k, v: strips, in `plan.block_shape`.
    bias: of `pack_bias`, [groups, queries, heads * keys].
    bits: of `head_masks`, cuts stacks of keys and values down to blocks.
    sums: of `head_masks`, [groups, heads * keys, lanes] of zeros and ones.
  """

  q: Any
  k: Any
  v: Any
  bias: Any
  bits: Any
  sums: Any


class _Outputs(NamedTuple):
  out: Any


class _Scratch(NamedTuple):
  """One strip of each image, see `window_call.scratch_of`.

  Filled and used up within a strip: nothing is carried from one to the next,
  but what the padding holds, which must be numbers from the first step on. With
  the batch in rows, inputs are read from their blocks and have None here.
  """

  q: Any
  k: Any
  v: Any
  out: Any


def forward(plan: Plan, q, k, v, bias):
  """Returns the attention of each window of images in `plan.image_shape`."""
  bits, sums = head_masks(plan)
  image = window_call.image_spec(plan)
  results = window_call.call(
    plan,
    _kernel,
    "window_attention_forward",
    _Inputs(
      *(Blocked(x, image) for x in (q, k, v)),
      bias=window_call.per_group(plan, pack_bias(plan, bias)),
      bits=tpu.whole(bits),
      sums=window_call.per_group(plan, sums),
    ),
    _Outputs(Blocked(jax.ShapeDtypeStruct(plan.image_shape, q.dtype), image)),
    _Scratch(*window_call.scratch_of(plan, inputs=3, outputs=1)),
    # Scores, outputs and row sums.
    product_rows=3 * plan.queries,
    exponentials=1,
  )
  return results.out


def _kernel(inputs: _Inputs, outputs: _Outputs, scratch: _Scratch, plan: Plan):
  read = (
    (inputs.q, scratch.q),
    (inputs.k, scratch.k),
    (inputs.v, scratch.v),
  )
  first_channel = tiles.first_channel(plan)
  tiles.clear_at_first_step(x for _, x in read if x is not None)

  def attend(loads, windows, group, subtract_maxima):
    """Writes the outputs; returns the row sums [queries, lanes] of each."""
    # Q rows of queries in each, D channels of each of the group's N heads side
    # by side in the lanes: [Q, N D].
    arrays = (load(group, windows) for load in loads)
    results = [
      _attend(plan, inputs, group, *window, subtract_maxima)
      for window in zip(*arrays, strict=True)
    ]
    outs, sums = zip(*results, strict=True)
    tiles.store(plan, scratch.out, group, windows, list(outs))
    return sums

  def run(good, subtract_maxima, unroll):
    """Does all strips; zeroes `good` where row sums are extreme."""

    def windows_body(loads, parts, good):
      for windows in parts:
        for group in range(plan.step_groups):
          for sums in attend(loads, windows, group, subtract_maxima):
            if not subtract_maxima:
              good = tiles.in_range(sums, good)
      return good

    return tiles.for_strips(
      plan,
      read,
      ((outputs.out, scratch.out),),
      first_channel,
      lambda loads, good: tiles.for_windows(
        plan, functools.partial(windows_body, loads), good, unroll
      ),
      good,
    )

  tiles.again_if_extreme(plan, run)


def _attend(plan, inputs, group, q, k, v, subtract_maxima):
  """Returns the output of a window [Q, N D] and its row sums, the same shape.

  Arguments are [Q, N D].
  """
  heads = plan.stacked_heads(group)
  keys = slice(0, heads * plan.keys)
  # [Q, N D] -> block-diagonal [N K, N D]: a product over all lanes then adds
  # up the channels of one head only.
  k, v = (tiles.stack(plan, x, inputs.bits[...], heads) for x in (k, v))
  # [Q, N K], in base two: exp2 is one instruction, exp is exp2 and a product.
  scores = tiles.product(plan, q, k, transposed=True)
  scores *= plan.scale * math.log2(math.e)
  # The bias also hides the keys that pad K.
  scores += inputs.bias[group, :, keys]
  if subtract_maxima:
    scores = tiles.subtract_maxima(plan, scores)
  weights = jnp.exp2(scores).astype(plan.dtype)
  # [Q, N D] in the order of the channels, undivided.
  out = tiles.product(plan, weights, v)
  # Row sums by the matrix unit, of the very weights that made the output, and
  # each head's already spread over its D lanes: sums along lanes would take
  # several turns of a register for each head.
  sums = tiles.product(plan, weights, inputs.sums[group, keys])
  return out * tiles.reciprocal(plan, sums, zeros=subtract_maxima), sums
