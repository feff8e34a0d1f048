"""The gradients of block and grid attention on TPUs.

With e the weights before division by their sums l, o the output and g its
gradient,

  g' = g / l,  delta = sum over a head of g' o,  ds = e (g' v^T - delta)
  dq = scale ds k,  dk = scale ds^T q,  dv = e^T g',  dbias = sum of ds

The scores are computed twice, once with queries in rows and the heads' keys
side by side, for dq and dbias, and once with keys in rows and the heads'
queries side by side, for dk and dv: cheaper than a transposition.

Shapes in comments: Q and K rows of a window's queries and keys, N heads of a
group, D channels of a head; N D is padded to whole registers of 128 lanes.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention.kernels import tpu, window_call
from attention.kernels import window_tiles as tiles
from attention.kernels.tpu import Blocked
from attention.kernels.window_plan import (
  Plan,
  head_masks,
  pack_bias,
  unpack_bias,
)


class _Inputs(NamedTuple):
  """Strips of images, and what is the same for all of them.

  Attributes:
    q, k, v, out_bar: strips, in `plan.block_shape`.
    bias: of `pack_bias`, [groups, Q, N K].
    transposed_bias: of `pack_bias`, of the bias with queries and keys
      exchanged, [groups, K, N Q]: the pass with keys in rows needs it so.
    sums: of `head_masks`, [groups, N K, N D] of zeros and ones.
    bits: of `head_masks`, cuts a stack down to its diagonal blocks.
  """

  q: Any
  k: Any
  v: Any
  out_bar: Any
  bias: Any
  transposed_bias: Any
  sums: Any
  bits: Any


class _Outputs(NamedTuple):
  """Strips of the gradients, and the sum of the scores' (None without bias)."""

  q_bar: Any
  k_bar: Any
  v_bar: Any
  bias_bar: Any


class _Scratch(NamedTuple):
  """One strip of each image, see `window_call.scratch_of`.

  Filled and used up within a strip; inputs are None with the batch in rows.
  `bias_bar` [groups of a step, Q, N K] carries the sum over the windows of a
  grid step: it goes to the output only when it is known which of the two runs
  over the step counts.
  """

  q: Any
  k: Any
  v: Any
  out_bar: Any
  q_bar: Any
  k_bar: Any
  v_bar: Any
  bias_bar: Any


def backward(plan: Plan, q, k, v, bias, out_bar):
  """Returns the gradients of `forward`; that of the bias in float32."""
  bits, sums = head_masks(plan)
  packed = pack_bias(plan, bias)
  transposed = None if bias is None else bias.swapaxes(1, 2)
  image = window_call.image_spec(plan)
  image_bar = Blocked(jax.ShapeDtypeStruct(plan.image_shape, q.dtype), image)
  bias_bar = window_call.bias_sums(plan) if plan.has_bias else None
  results = window_call.call(
    plan,
    _kernel,
    "window_attention_backward",
    _Inputs(
      *(Blocked(x, image) for x in (q, k, v, out_bar)),
      bias=window_call.per_group(plan, packed),
      transposed_bias=window_call.per_group(plan, pack_bias(plan, transposed)),
      sums=window_call.per_group(plan, sums),
      bits=tpu.whole(bits),
    ),
    _Outputs(*[image_bar] * 3, bias_bar),
    _Scratch(
      *window_call.scratch_of(plan, inputs=4, outputs=3),
      bias_bar=bias_bar and bias_bar.spec.block_shape[1:],
    ),
    # Eleven full products and one of 8 rows.
    product_rows=11 * plan.queries + 8,
    exponentials=2,
  )
  if not plan.has_bias:
    return results
  # The cores' own sums, always in the same order.
  bias_bar = jnp.sum(results.bias_bar, axis=0)
  return results._replace(bias_bar=unpack_bias(plan, bias_bar))


def _kernel(inputs: _Inputs, outputs: _Outputs, scratch: _Scratch, plan: Plan):
  read = (
    (inputs.q, scratch.q),
    (inputs.k, scratch.k),
    (inputs.v, scratch.v),
    (inputs.out_bar, scratch.out_bar),
  )
  written = (
    (outputs.q_bar, scratch.q_bar),
    (outputs.k_bar, scratch.k_bar),
    (outputs.v_bar, scratch.v_bar),
  )
  first_channel = tiles.first_channel(plan)
  # The bias's gradient is cleared once and goes on over all steps of the core.
  sums_over_steps = (outputs.bias_bar,) if plan.has_bias else ()
  filled = (x for _, x in read if x is not None)
  tiles.clear_at_first_step((*filled, *sums_over_steps))

  def gradients(loads, windows, group, subtract_maxima):
    """Writes three gradients; yields row sums and the scores' gradients."""
    # [Q, N D] each; rows of padding hold tokens of other windows.
    arrays = [load(group, windows) for load in loads]
    bars = []
    for window in zip(*arrays, strict=True):
      by_query = _by_queries(plan, inputs, group, window, subtract_maxima)
      k_bar, v_bar = _by_keys(
        plan, inputs, group, window[:3], by_query, subtract_maxima
      )
      bars.append((by_query.q_bar, k_bar, v_bar))
      yield by_query.sums, by_query.scores_bar
    outs = (scratch.q_bar, scratch.k_bar, scratch.v_bar)
    for x, values in zip(outs, zip(*bars, strict=True), strict=True):
      tiles.store(plan, x, group, windows, list(values))

  def run(good, subtract_maxima, unroll):
    """Does all strips; zeroes `good` where row sums are extreme."""
    if plan.has_bias:
      # Also what a run with extreme scores has left.
      scratch.bias_bar[...] = jnp.zeros_like(scratch.bias_bar)

    def windows_body(loads, parts, good):
      # Groups outside: the gradients of the windows of a turn are added up in
      # registers, and scratch memory is read and written once a turn.
      for group in range(plan.step_groups):
        bias_bar = None
        results = itertools.chain.from_iterable(
          gradients(loads, windows, group, subtract_maxima) for windows in parts
        )
        for sums, scores_bar in results:
          if not subtract_maxima:
            good = tiles.in_range(sums, good)
          bias_bar = scores_bar if bias_bar is None else bias_bar + scores_bar
        if plan.has_bias:
          # The last group may have fewer heads, so fewer columns.
          keys = slice(0, bias_bar.shape[1])
          scratch.bias_bar[group, :, keys] += bias_bar
      return good

    return tiles.for_strips(
      plan,
      read,
      written,
      first_channel,
      lambda loads, good: tiles.for_windows(
        plan, functools.partial(windows_body, loads), good, unroll
      ),
      good,
    )

  tiles.again_if_extreme(plan, run)

  if plan.has_bias:
    outputs.bias_bar[0] += scratch.bias_bar[...]


class _ByQuery(NamedTuple):
  """What the pass with queries in rows leaves.

  Attributes:
    q_bar: gradient of the queries, [Q, N D].
    scores_bar: gradient of the scores, [Q, N K].
    out_bar: gradient of the output over the row sums, [Q, N D].
    delta: `out_bar` times the output, channel by channel, [Q, N D].
    sums: row sums of the weights, the same in all lanes of a head, [Q, N D].
  """

  q_bar: jax.Array
  scores_bar: jax.Array
  out_bar: jax.Array
  delta: jax.Array
  sums: jax.Array


def _by_queries(plan, inputs, group, images, subtract_maxima) -> _ByQuery:
  """The scores as [Q, N K], and what follows from them for queries."""
  q, k, v, out_bar = images
  heads = plan.stacked_heads(group)
  keys = slice(0, heads * plan.keys)
  # [Q, N D] -> block-diagonal [N K, N D]
  stack = lambda x: tiles.stack(plan, x, inputs.bits[...], heads)
  all_keys, all_values, head_sums = stack(k), stack(v), inputs.sums[group, keys]
  scores = tiles.product(plan, q, all_keys, transposed=True)
  scores = scores * _exponent_scale(plan) + inputs.bias[group, :, keys]
  if subtract_maxima:
    scores = tiles.subtract_maxima(plan, scores)
  weights = jnp.exp2(scores)
  # Each head's sum in all of its lanes, as in the forward pass.
  sums = tiles.product(plan, weights, head_sums)
  inverse = tiles.reciprocal(plan, sums, zeros=subtract_maxima)
  out = tiles.product(plan, weights, all_values) * inverse
  # The division goes to g, which has fewer numbers than the weights. The same
  # rounded numbers in all products: then the gradients of the scores of a
  # query sum to zero.
  out_bar = (out_bar * inverse).astype(plan.dtype).astype(jnp.float32)
  delta = out_bar * out
  # The second product sums delta over the lanes of a head and has the sum at
  # once in each of the head's K columns.
  scores_bar = weights * (
    tiles.product(plan, out_bar, all_values, transposed=True)
    - tiles.product(plan, delta, head_sums, transposed=True)
  )
  q_bar = tiles.product(plan, scores_bar, all_keys) * plan.scale
  return _ByQuery(q_bar, scores_bar, out_bar, delta, sums)


def _by_keys(plan, inputs, group, images, by_query, subtract_maxima):
  """The scores as [K, N Q], and the gradients of keys and values."""
  q, k, v = images
  heads = plan.stacked_heads(group)
  # As many rows of a stack are queries here as keys above: K >= Q.
  queries = slice(0, heads * plan.keys)
  stack = lambda x: tiles.stack(plan, x, inputs.bits[...], heads)
  all_queries, all_out_bar = stack(q), stack(by_query.out_bar)
  scores = tiles.product(plan, k, all_queries, transposed=True)
  scores = (
    scores * _exponent_scale(plan) + inputs.transposed_bias[group, :, queries]
  )
  if subtract_maxima:
    # Padded keys are not masked here but their rows are not stored.
    scores -= _column_maxima(plan, scores)
  weights = jnp.exp2(scores)
  # Each query's row sum is in its row of g' already: a product with it needs no
  # division along lanes.
  v_bar = tiles.product(plan, weights, all_out_bar)
  # Sums of delta over the lanes of each head come as a row [1, N Q] out of a
  # product with ones; 8 rows are the least that the matrix unit takes.
  ones = jnp.ones((8, plan.lanes), jnp.float32)
  deltas = tiles.product(plan, ones, stack(by_query.delta), transposed=True)[:1]
  values_out = tiles.product(plan, v, all_out_bar, transposed=True)
  scores_bar = weights * (values_out - deltas)
  k_bar = tiles.product(plan, scores_bar, all_queries) * plan.scale
  return k_bar, v_bar


def _exponent_scale(plan: Plan) -> float:
  """Turns products of queries and keys into exponents of two."""
  return plan.scale * math.log2(math.e)


def _column_maxima(plan: Plan, scores):
  """Returns [1, heads * queries], the maxima over the keys that exist."""
  row = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  real = row % plan.padded_run < plan.run
  return tiles.finite_maxima(jnp.where(real, scores, -jnp.inf), axis=0)
