"""What a program of the flash kernels on GPUs does.

A program has one tile of queries (or of keys, for their gradients) and walks
along the tiles that the mask leaves of its row (or column). Tiles are walked in
steps of at most `STEP` keys (or queries), so that scores stay in registers. The
first axis of the grid numbers tiles, so that programs that run at the same time
read the same head's keys.

Sums are lists, an array for each piece of the channels of a head.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention.kernels import flash_gpu_tiles as tiles
from attention.kernels import triton
from attention.kernels.flash_gpu_tiles import STEP, Arrays
from attention.kernels.flash_plan import LEAST
from attention.mask_base import EMPTY


def forward_kernel(plan, arrays: Arrays, out_ref, lse_ref):
  """The output of a tile of queries, and their log-sum-exps."""
  row, head, batch, place = _own_queries(plan, arrays)
  q = tiles.load(arrays.q, place, place.queries)

  def step(keys, state, carry):
    largest, total, sums = carry
    here = place.at(keys=keys)
    k = tiles.load(arrays.k, here, keys)
    # [block_q, step]
    scores, _ = tiles.scores(plan, q, k, here, arrays.operands, state)
    if plan.weigh == "softmax":
      before, largest = largest, jnp.maximum(largest, jnp.max(scores, axis=1))
      # What was summed with the maximum before is worth less by this.
      kept = triton.exp(before - largest)
      weights = triton.exp(scores - largest[:, None])
      total = total * kept + jnp.sum(weights, axis=1)
      sums = [x * kept[:, None] for x in sums]
    else:
      weights = tiles.weights_of(plan, scores, None)
    v = tiles.load(arrays.v, here, keys)
    if plan.raw and plan.mask is not None:
      v = tiles.seen_only(scores, v)
    return largest, total, tiles.add_product(sums, weights, v)

  # Not -inf: the difference to the first maximum must be a number. Above
  # MASKED: a masked key weighs nothing even where no other was seen yet.
  largest = jnp.full((plan.block_q,), LEAST, jnp.float32)
  total = jnp.zeros((plan.block_q,), jnp.float32)
  sums = tiles.zeros(plan.block_q, arrays.v)
  others = (arrays.k.shape[1], plan.block_k, min(STEP, plan.block_k))
  largest, total, sums = tiles.walk(
    plan, arrays.lists, place, row, others, step, (largest, total, sums)
  )
  lse = jnp.zeros_like(total)
  if plan.weigh == "softmax":
    # A row that saw no key: its sums of values are zero as well.
    some = total > 0
    total = jnp.where(some, total, 1.0)
    lse = jnp.where(some, largest + jnp.log(total), -jnp.inf)
    sums = [x / total[:, None] for x in sums]
  tiles.store(out_ref, place, place.queries, sums)
  triton.store(lse_ref, (batch, head, place.queries), lse)


def queries_kernel(plan, arrays: Arrays, d_q_ref, sum_refs):
  """The gradients of a tile of queries, and sums over keys of operands'."""
  row, head, batch, place = _own_queries(plan, arrays)
  queries = place.queries
  q = tiles.load(arrays.q, place, queries)
  d_out = tiles.load(arrays.d_out, place, queries)
  statistics = [x[:, None] for x in _statistics(arrays, batch, head, queries)]

  def step(keys, state, carry):
    d_q, sums = carry
    here = place.at(keys=keys)
    k = tiles.load(arrays.k, here, keys)
    _, d_scores, d_values = tiles.made_again(
      plan,
      q,
      k,
      d_out,
      lambda: tiles.load(arrays.v, here, keys),
      here,
      statistics,
      (arrays.operands, state, list(sum_refs)),
    )
    d_q = tiles.add_product(d_q, d_scores, k)
    return d_q, _summed(sums, d_values)

  zeros = {n: jnp.zeros((plan.block_q,), jnp.float32) for n in sum_refs}
  length = tiles.backward_step(arrays.q, arrays.v, plan.block_k)
  d_q, sums = tiles.walk(
    plan,
    arrays.lists,
    place,
    row,
    (arrays.k.shape[1], plan.block_k, length),
    step,
    (tiles.zeros(plan.block_q, arrays.q), zeros),
  )
  # The scale once at the end instead of on every tile.
  tiles.store(d_q_ref, place, queries, [x * plan.scale for x in d_q])
  for n, ref in sum_refs.items():
    if plan.inner(n) == "q":
      triton.store(ref, (batch, head, queries), sums[n])
    else:
      # One number for all: each program leaves the sum over its queries.
      triton.store(ref, (batch, head, row), jnp.sum(sums[n]))


def keys_kernel(plan, arrays: Arrays, d_k_ref, d_v_ref, sum_refs):
  """The gradients of a tile of keys and values, for one head of queries.

  Tiles lie on their side, [keys, queries]: so the sums belong to rows, and both
  products contract queries as they were loaded. `sum_refs` are sums over
  queries for operands along keys.
  """
  row, head, batch = map(pl.program_id, range(3))
  keys = row * plan.block_k + jnp.arange(plan.block_k)
  place = tiles.place_of(arrays, head, batch, keys=keys, turned=True)
  k, v = (tiles.load(ref, place, keys) for ref in (arrays.k, arrays.v))

  def step(queries, state, carry):
    d_k, d_v, sums = carry
    here = place.at(queries=queries)
    q = tiles.load(arrays.q, here, queries)
    d_out = tiles.load(arrays.d_out, here, queries)
    statistics = _statistics(arrays, batch, head, queries)
    weights, d_scores, d_values = tiles.made_again(
      plan,
      k,
      q,
      v,
      lambda: d_out,
      here,
      [x[None, :] for x in statistics],
      (arrays.operands, state, list(sum_refs)),
    )
    d_v = tiles.add_product(d_v, weights, d_out)
    if plan.weigh == "ones":
      return d_k, d_v, sums
    d_k = tiles.add_product(d_k, d_scores, q)
    return d_k, d_v, _summed(sums, d_values)

  length = tiles.backward_step(arrays.q, arrays.v, plan.block_q)
  d_k, d_v, sums = tiles.walk(
    plan,
    arrays.lists,
    place,
    row,
    (arrays.q.shape[1], plan.block_q, length),
    step,
    (
      tiles.zeros(plan.block_k, arrays.k),
      tiles.zeros(plan.block_k, arrays.v),
      {n: jnp.zeros((plan.block_k,), jnp.float32) for n in sum_refs},
    ),
  )
  tiles.store(d_k_ref, place, keys, [x * plan.scale for x in d_k])
  tiles.store(d_v_ref, place, keys, d_v)
  for n, ref in sum_refs.items():
    triton.store(ref, (batch, head, keys), sums[n])


def dense_kernel(plan, arrays: Arrays, d_array_ref, *, number):
  """One tile of an operand's gradient, summed over what shares the operand.

  The operand has a number a score. A program has the same tile of all batch
  elements and heads that share it, so that the sum stays in registers, in one
  order.
  """
  # `part` numbers steps of keys, `lead` pairs of the operand's own batch and
  # head.
  part, row, lead = map(pl.program_id, range(3))
  step = tiles.backward_step(arrays.q, arrays.v, plan.block_k)
  queries = row * plan.block_q + jnp.arange(plan.block_q)
  keys = part * step + jnp.arange(step)
  own_batch, own_head = triton.divide(lead, d_array_ref.shape[1])
  batch, _, heads, _ = arrays.q.shape
  batches = batch if d_array_ref.shape[0] == 1 else 1
  sharing = heads if d_array_ref.shape[1] == 1 else 1

  def add(i, total):
    batch_offset, head_offset = triton.divide(i, sharing)
    place = tiles.place_of(
      arrays,
      own_head + head_offset,
      own_batch + batch_offset,
      queries=queries,
      keys=keys,
    )
    state = tiles.state_at(plan, arrays.lists, place, row, part * step)

    def tile(total):
      q, d_out = (
        tiles.load(ref, place, queries) for ref in (arrays.q, arrays.d_out)
      )
      k, v = (tiles.load(ref, place, keys) for ref in (arrays.k, arrays.v))
      statistics = _statistics(arrays, place.batch, place.head, queries)
      _, _, d_values = tiles.made_again(
        plan,
        q,
        k,
        d_out,
        lambda: v,
        place,
        [x[:, None] for x in statistics],
        (arrays.operands, state, [number]),
      )
      return total + d_values[number]

    if state is None:
      return tile(total)
    return lax.cond(state != EMPTY, tile, lambda total: total, total)

  total = jnp.zeros((plan.block_q, step), jnp.float32)
  total = lax.fori_loop(0, batches * sharing, add, total)
  triton.store(
    d_array_ref,
    (own_batch, own_head, queries[:, None], keys[None, :]),
    total,
  )


def _own_queries(plan, arrays: Arrays):
  """Returns the numbers of a program with a tile of queries, and its place."""
  row, head, batch = map(pl.program_id, range(3))
  queries = row * plan.block_q + jnp.arange(plan.block_q)
  place = tiles.place_of(arrays, head, batch, queries=queries)
  return row, head, batch, place


def _statistics(arrays: Arrays, batch, head, queries):
  """Returns log-sum-exps and deltas of queries."""
  return [
    triton.load(ref, (batch, head, queries))
    for ref in (arrays.lse, arrays.delta)
  ]


def _summed(sums, d_values):
  """Adds operands' gradients on a tile, summed over its columns."""
  return {n: x + jnp.sum(d_values[n], axis=1) for n, x in sums.items()}
