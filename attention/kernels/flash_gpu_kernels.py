"""What a program of the flash kernels on GPUs does.

A program has one tile of queries (or of keys, for their gradients) and walks
along the tiles that the mask leaves of its row (or column). Tiles are walked in
steps of at most STEP keys (or queries), so that scores stay in registers. Where
keys are the rows, the same tile functions see their positions turned, as score
modifications and masks are elementwise.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention.kernels import triton
from attention.kernels.flash_plan import LEAST, LIST_BASE, MASKED
from attention.mask_base import EMPTY, MIXED
from attention.tiles import Tile

# Most keys or queries of a step along a tile; the backward pass takes shorter
# steps where the sums it holds are wide.
STEP = 64
WIDE = 64


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where a program or a step of it is.

  Attributes:
    batch, head: numbers of what the arrays here hold.
    heads: how many heads the queries have here.
    indices: the same for the whole call, of which this device has a part.
    queries, keys: positions, one of them None where a step has to say.
    turned: whether keys are the rows of a tile.
  """

  batch: object
  head: object
  heads: int
  indices: tuple
  queries: object = None
  keys: object = None
  turned: bool = False

  def at(self, **positions):
    return dataclasses.replace(self, **positions)

  @property
  def q_index(self):
    return self.queries[None, :] if self.turned else self.queries[:, None]

  @property
  def k_index(self):
    return self.keys[:, None] if self.turned else self.keys[None, :]

  @property
  def tile(self):
    return Tile(*self.indices, self.q_index, self.k_index)


def _place(indices, head, batch, **more):
  numbers = (
    triton.load(ref, (i,))
    for ref, i in zip(indices, (batch, head), strict=True)
  )
  heads = indices[1].shape[0]
  return _Place(batch, head, heads, tuple(numbers), **more)


def forward_kernel(
  plan, q_ref, k_ref, v_ref, operands, indices, lists, out_ref, lse_ref
):
  row, head, batch = map(pl.program_id, range(3))
  queries = row * plan.block_q + jnp.arange(plan.block_q)
  place = _place(indices, head, batch, queries=queries)
  q = _load(q_ref, place, queries)

  def step(keys, state, carry):
    largest, total, sums = carry
    here = place.at(keys=keys)
    k = _load(k_ref, here, keys)
    scores, _ = _scores(plan, q, k, here, operands, state)
    if plan.weigh == "softmax":
      before, largest = largest, jnp.maximum(largest, jnp.max(scores, axis=1))
      kept = triton.exp(before - largest)
      weights = triton.exp(scores - largest[:, None])
      total = total * kept + jnp.sum(weights, axis=1)
      sums = [x * kept[:, None] for x in sums]
    else:
      weights = _weights(plan, scores, None)
    v = _load(v_ref, here, keys)
    sums = [
      x + triton.dot(weights.astype(part.dtype), part)
      for x, part in zip(sums, v, strict=True)
    ]
    return largest, total, sums

  largest = jnp.full((plan.block_q,), LEAST, jnp.float32)
  total = jnp.zeros((plan.block_q,), jnp.float32)
  sums = _zeros(plan.block_q, v_ref)
  others = (k_ref.shape[1], plan.block_k, min(STEP, plan.block_k))
  largest, total, sums = _walk(
    plan, lists, place, row, others, step, (largest, total, sums)
  )
  lse = jnp.zeros_like(total)
  if plan.weigh == "softmax":
    some = total > 0
    total = jnp.where(some, total, 1.0)
    lse = jnp.where(some, largest + jnp.log(total), -jnp.inf)
    sums = [x / total[:, None] for x in sums]
  _store(out_ref, place, queries, sums)
  triton.store(lse_ref, (batch, head, queries), lse)


def queries_kernel(
  plan,
  q_ref,
  k_ref,
  v_ref,
  operands,
  indices,
  lists,
  d_out_ref,
  lse_ref,
  delta_ref,
  d_q_ref,
  sum_refs,
):
  row, head, batch = map(pl.program_id, range(3))
  queries = row * plan.block_q + jnp.arange(plan.block_q)
  place = _place(indices, head, batch, queries=queries)
  q = _load(q_ref, place, queries)
  d_out = _load(d_out_ref, place, queries)
  lse, delta = (
    triton.load(ref, (batch, head, queries))[:, None]
    for ref in (lse_ref, delta_ref)
  )

  def step(keys, state, carry):
    d_q, sums = carry
    here = place.at(keys=keys)
    k = _load(k_ref, here, keys)
    scores, pull = _scores(plan, q, k, here, operands, state, list(sum_refs))
    weights = _weights(plan, scores, lse)
    d_weights = _product(d_out, _load(v_ref, here, keys))
    d_scores, d_values = pull(_score_gradient(plan, weights, d_weights, delta))
    d_q = [
      x + triton.dot(d_scores.astype(part.dtype), part)
      for x, part in zip(d_q, k, strict=True)
    ]
    sums = {n: x + jnp.sum(d_values[n], axis=1) for n, x in sums.items()}
    return d_q, sums

  zeros = {n: jnp.zeros((plan.block_q,), jnp.float32) for n in sum_refs}
  d_q, sums = _walk(
    plan,
    lists,
    place,
    row,
    (k_ref.shape[1], plan.block_k, backward_step(q_ref, v_ref, plan.block_k)),
    step,
    (_zeros(plan.block_q, q_ref), zeros),
  )
  _store(d_q_ref, place, queries, [x * plan.scale for x in d_q])
  for n, ref in sum_refs.items():
    if plan.inner(n) == "q":
      triton.store(ref, (batch, head, queries), sums[n])
    else:
      triton.store(ref, (batch, head, row), jnp.sum(sums[n]))


def keys_kernel(
  plan,
  q_ref,
  k_ref,
  v_ref,
  operands,
  indices,
  lists,
  d_out_ref,
  lse_ref,
  delta_ref,
  d_k_ref,
  d_v_ref,
  sum_refs,
):
  row, head, batch = map(pl.program_id, range(3))
  keys = row * plan.block_k + jnp.arange(plan.block_k)
  place = _place(indices, head, batch, keys=keys, turned=True)
  shared = _load(k_ref, place, keys), _load(v_ref, place, keys)

  def step(queries, state, carry):
    d_k, d_v, sums = carry
    k, v = shared
    here = place.at(queries=queries)
    q = _load(q_ref, here, queries)
    d_out = _load(d_out_ref, here, queries)
    lse, delta = (
      triton.load(ref, (batch, head, queries))[None, :]
      for ref in (lse_ref, delta_ref)
    )
    scores, pull = _scores(plan, k, q, here, operands, state, list(sum_refs))
    weights = _weights(plan, scores, lse)
    d_v = [
      x + triton.dot(weights.astype(part.dtype), part)
      for x, part in zip(d_v, d_out, strict=True)
    ]
    if plan.weigh == "ones":
      return d_k, d_v, sums
    d_weights = _product(v, d_out)
    d_scores, d_values = pull(_score_gradient(plan, weights, d_weights, delta))
    d_k = [
      x + triton.dot(d_scores.astype(part.dtype), part)
      for x, part in zip(d_k, q, strict=True)
    ]
    sums = {n: x + jnp.sum(d_values[n], axis=1) for n, x in sums.items()}
    return d_k, d_v, sums

  d_k, d_v, sums = _walk(
    plan,
    lists,
    place,
    row,
    (q_ref.shape[1], plan.block_q, backward_step(q_ref, v_ref, plan.block_q)),
    step,
    (
      _zeros(plan.block_k, k_ref),
      _zeros(plan.block_k, v_ref),
      {n: jnp.zeros((plan.block_k,), jnp.float32) for n in sum_refs},
    ),
  )
  _store(d_k_ref, place, keys, [x * plan.scale for x in d_k])
  _store(d_v_ref, place, keys, d_v)
  for n, ref in sum_refs.items():
    triton.store(ref, (batch, head, keys), sums[n])


def dense_kernel(
  plan,
  q_ref,
  k_ref,
  v_ref,
  operands,
  indices,
  lists,
  d_out_ref,
  lse_ref,
  delta_ref,
  d_array_ref,
  *,
  number,
):
  """One tile of the gradient, summed over what shares the operand."""
  part, row, lead = map(pl.program_id, range(3))
  step = backward_step(q_ref, v_ref, plan.block_k)
  queries = row * plan.block_q + jnp.arange(plan.block_q)
  keys = part * step + jnp.arange(step)
  own_batch, own_head = triton.divide(lead, d_array_ref.shape[1])
  batch, _, heads, _ = q_ref.shape
  batches = batch if d_array_ref.shape[0] == 1 else 1
  sharing = heads if d_array_ref.shape[1] == 1 else 1

  def add(i, total):
    batch_offset, head_offset = triton.divide(i, sharing)
    place = _place(
      indices,
      own_head + head_offset,
      own_batch + batch_offset,
      queries=queries,
      keys=keys,
    )
    state = None
    if lists:
      column, _ = triton.divide(part * step, plan.block_k)
      state = triton.load(lists[0], (*_lead(lists[0], place), row, column))

    def tile(total):
      q, d_out = (_load(ref, place, queries) for ref in (q_ref, d_out_ref))
      k, v = (_load(ref, place, keys) for ref in (k_ref, v_ref))
      lse, delta = (
        triton.load(ref, (place.batch, place.head, queries))[:, None]
        for ref in (lse_ref, delta_ref)
      )
      scores, pull = _scores(plan, q, k, place, operands, state, [number])
      weights = _weights(plan, scores, lse)
      d_weights = _product(d_out, v)
      gradient = _score_gradient(plan, weights, d_weights, delta)
      return total + pull(gradient)[1][number]

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


def _walk(plan, lists, place, row, others, step, carry):
  """Runs `step(positions, state, carry)` along the tiles of a row.

  Args:
    plan: the plan.
    lists: the list of tiles, if there is one.
    place: where the program is.
    row: number of its tile.
    others: of what is walked along, its length, the length of a tile and that
      of a step.
    step: function of positions, of the state of their tile or None, and of
      what it returns.
    carry: the first of that.
  """
  length, block, size = others
  if not lists:

    def every(i, carry):
      return step(i * size + jnp.arange(size), None, carry)

    return lax.fori_loop(0, length // size, every, carry)

  (list_ref,) = lists
  count = jnp.sum(_entries(list_ref, place, row) % LIST_BASE != EMPTY)
  parts = block // size

  def listed(i, carry):
    i, part = triton.divide(i, parts)
    entry = triton.load(list_ref, (*_lead(list_ref, place), row, i))
    tile, state = triton.divide(entry, LIST_BASE)
    return step(tile * block + part * size + jnp.arange(size), state, carry)

  return lax.fori_loop(0, count.astype(jnp.int32) * parts, listed, carry)


def backward_step(q, v, block):
  wide = max(q.shape[3], v.shape[3]) > WIDE
  return min(STEP // 2 if wide else STEP, block)


def _entries(list_ref, place, row):
  """Returns the row of a list, EMPTY beyond its end."""
  length = list_ref.shape[3]
  tile = triton.tile_size(length)
  return triton.load(
    list_ref,
    (*_lead(list_ref, place), row, jnp.arange(tile)),
    tails=triton.tail(3, length, tile),
    other=EMPTY,
  )


def _lead(ref, place):
  """Returns batch and head of an array that may be shared by all."""
  return (
    place.batch if ref.shape[0] > 1 else 0,
    place.head if ref.shape[1] > 1 else 0,
  )


def _scores(plan, rows, columns, place, operands, state, wanted=None):
  """Returns a tile of scores and the function that pulls gradients back.

  That takes the gradient to the scores and returns the gradient to the product
  of queries and keys, and those to the values of the operands `wanted`, each a
  whole tile.
  """
  if plan.weigh == "ones":
    scores = jnp.zeros((rows[0].shape[0], columns[0].shape[0]), jnp.float32)
    return _masked(plan, scores, place, operands, state), None
  scores = _product(rows, columns) * plan.scale
  pull = lambda gradient: (gradient, {})
  if plan.mods:
    values = [
      _value(plan, n, operands[n], place) for n in range(plan.mod_operands)
    ]
    chosen = {
      n: jnp.broadcast_to(values[n], scores.shape) for n in wanted or ()
    }

    def modified(scores, chosen):
      merged = [chosen.get(n, value) for n, value in enumerate(values)]
      return plan.modified(scores, place.tile, merged)

    if wanted is None:
      scores = modified(scores, chosen)
    else:
      scores, pull = jax.vjp(modified, scores, chosen)
  return _masked(plan, scores, place, operands, state), pull


def _masked(plan, scores, place, operands, state):
  if plan.mask is None:
    return scores

  def masked(scores):
    # The mask takes none of the first.
    values = [scores] * plan.mod_operands + [
      _value(plan, n, operands[n], place)
      for n in range(plan.mod_operands, len(operands))
    ]
    return jnp.where(plan.visible(place.tile, values), scores, MASKED)

  return lax.cond(state == MIXED, masked, lambda scores: scores, scores)


def _value(plan, number, ref, place):
  """Returns the part of an operand that belongs to a tile."""
  positions = {
    "b": place.batch,
    "h": place.head,
    "q": place.q_index,
    "k": place.k_index,
  }
  value = triton.load(ref, [positions[axis] for axis in plan.axes[number]])
  if value.ndim == 0:
    value = jnp.full((1, 1), value)
  if plan.booleans[number]:
    return value != 0
  if jnp.issubdtype(value.dtype, jnp.floating):
    return value.astype(jnp.float32)
  return value


def _weights(plan, scores, lse):
  match plan.weigh:
    case "softmax":
      return triton.exp(scores - lse)
    case "sigmoid":
      return 1.0 / (1.0 + triton.exp(-scores))
    case "ones":
      return triton.exp(scores)


def _score_gradient(plan, weights, d_weights, delta):
  if plan.weigh == "sigmoid":
    return weights * (1.0 - weights) * d_weights
  return weights * (d_weights - delta)


def _product(rows, columns):
  return sum(
    triton.dot(a, b, transpose_b=True)
    for a, b in zip(rows, columns, strict=True)
  )


def _zeros(rows, ref):
  return [
    jnp.zeros((rows, size), jnp.float32)
    for _, size in triton.pieces(ref.shape[3])
  ]


def _load(ref, place, positions):
  """Returns rows of [batch, length, heads, dim] in pieces of their channels."""
  return [
    triton.load(ref, index, tails=tails)
    for index, tails in _pieces(ref, place, positions)
  ]


def _store(ref, place, positions, pieces):
  for (index, tails), piece in zip(
    _pieces(ref, place, positions), pieces, strict=True
  ):
    triton.store(ref, index, piece, tails=tails)


def _pieces(ref, place, positions):
  # Where there are fewer heads of keys, neighbouring heads of queries share.
  _, _, heads, dim = ref.shape
  head, _ = triton.divide(place.head, place.heads // heads)
  for start, size in triton.pieces(dim):
    index = (
      place.batch,
      positions[:, None],
      head,
      start + jnp.arange(size)[None, :],
    )
    yield index, () if start + size <= dim else (3,)
