"""Flash attention on NVIDIA GPUs: the kernels behind `kernels.flash`.

A program has one tile of queries (or of keys, for their gradients) and walks
along the tiles that the mask leaves of its row (or column). Tiles are walked in
steps of STEP keys (or queries), so that scores stay in registers. Where keys
are the rows, the same tile functions see their positions turned, as score
modifications and masks are elementwise.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention.kernels import triton
from attention.kernels.flash_plan import LEAST, LIST_BASE, MASKED
from attention.mask_base import EMPTY, MIXED
from attention.tiles import Tile

# How arrays come; Triton reads rows wherever they lie.
LAYOUT = "bnhd"
# Most queries and keys of a tile, and of a step along it: the backward pass
# takes shorter steps where the sums it holds are wide.
TILE = 128
STEP = 64
WIDE = 64
# Most channels of queries and keys.
MOST_DIM = 256


def unsupported(q, k, v, mask) -> str | None:
  """Says why the kernels cannot take these arguments, or returns None.

  `q`, `k` and `v` are [batch, length, heads, dim], with the channels of
  factored biases.
  """
  dim, v_dim = q.shape[-1], v.shape[-1]
  if dim > MOST_DIM or v_dim > max(dim, 2 * WIDE):
    return (
      f"q has heads of dimension {dim} and v of {v_dim}; the kernel takes q of "
      f"at most {MOST_DIM} and v of at most {2 * WIDE} or as wide as q"
    )
  block_q, block_k = block_sizes(q, k, mask)
  if min(block_q, block_k) < triton.LEAST_TILE:
    return (
      f"tiles of {block_q} x {block_k}, which the mask asks for, are smaller "
      f"than {triton.LEAST_TILE} x {triton.LEAST_TILE}"
    )
  return None


def block_sizes(q, k, mask) -> tuple[int, int]:
  """Returns the sides of a tile, powers of two; arguments as above."""
  most = TILE // 2 if q.shape[-1] > 2 * WIDE else TILE
  if q.dtype == jnp.float32:
    # Products in full float32 have no matrix unit and fill the registers.
    most = TILE // 4
  sizes = (min(most, triton.tile_size(x.shape[1])) for x in (q, k))
  multiples = (0, 0) if mask is None else mask.tile_multiples()
  # The greatest common divisor of a size and 0 is the size.
  return tuple(
    math.gcd(size, multiple)
    for size, multiple in zip(sizes, multiples, strict=True)
  )


def forward(plan, q, k, v, operands, indices, lists):
  """Returns the output and the log-sum-exp of each query.

  Args:
    plan: a `flash_plan.Plan`.
    q: [batch, q_len, heads, dim], padded to whole tiles like all arrays.
    k: [batch, kv_len, k_heads, dim].
    v: [batch, kv_len, v_heads, v_dim].
    operands: arrays of the modifications and then of the mask.
    indices: numbers of the batch elements and of the heads.
    lists: of the tiles of each row and of each column, and the states of all;
      or empty.

  Returns:
    [batch, q_len, heads, v_dim] in the dtype of `q`, and [batch, heads, q_len]
    in float32 (of softmax only, otherwise zeros).
  """
  batch, q_len, heads, _ = q.shape
  out_shape = (
    jax.ShapeDtypeStruct((batch, q_len, heads, v.shape[-1]), q.dtype),
    jax.ShapeDtypeStruct((batch, heads, q_len), jnp.float32),
  )
  arrays = (q, k, v, operands, indices, lists[:1])
  return _call(
    plan,
    _forward_kernel,
    "flash_attention_forward",
    arrays,
    out_shape,
    rows=plan.block_q,
    grid=(q_len // plan.block_q, heads, batch),
    products=q.shape[-1] + v.shape[-1],
    num_stages=3 if q.dtype != jnp.float32 else 1,
  )


def backward(plan, q, k, v, operands, indices, lists, d_out, lse, delta):
  """Returns the gradients to q, k, v and the operands of modifications.

  Args:
    plan, q, k, v, operands, indices, lists: as for `forward`.
    d_out: gradient to the output, like it.
    lse: log-sum-exp of each query, [batch, heads, q_len].
    delta: what the softmax takes away from the gradient to each weight,
      [batch, heads, q_len].
  """
  call = functools.partial(
    _Backward, plan, q, k, v, operands, indices, lists, d_out, lse, delta
  )()
  d_q, by_query = call.queries()
  d_k, d_v, by_key = call.keys()
  d_operands = []
  for number in range(plan.mod_operands):
    if number in by_query:
      gradient = by_query[number]
    elif number in by_key:
      gradient = by_key[number]
    elif number in _differentiated(plan, operands, "qk"):
      gradient = call.dense(number)
    else:
      gradient = None
    d_operands.append(gradient)
  return d_q, d_k, d_v, d_operands


@dataclasses.dataclass(frozen=True)
class _Backward:
  """The three kernels of the backward pass, and what they are called with."""

  plan: object
  q: jax.Array
  k: jax.Array
  v: jax.Array
  operands: tuple
  indices: tuple
  lists: tuple
  d_out: jax.Array
  lse: jax.Array
  delta: jax.Array

  def queries(self):
    """Returns the gradients to queries and to operands without keys."""
    plan, q = self.plan, self.q
    if plan.weigh == "ones":
      wanted = _differentiated(plan, self.operands, "", "q")
      zeros = {n: jnp.zeros_like(self.operands[n]) for n in wanted}
      return jnp.zeros_like(q), zeros
    batch, q_len, heads, dim = q.shape
    tiles = q_len // plan.block_q
    sums = {
      n: jax.ShapeDtypeStruct(
        (batch, heads, q_len if plan.inner(n) == "q" else tiles), jnp.float32
      )
      for n in _differentiated(plan, self.operands, "", "q")
    }
    d_q, sums = self._call(
      _queries_kernel,
      "flash_attention_backward_queries",
      (jax.ShapeDtypeStruct(q.shape, q.dtype), sums),
      self.lists[:1],
      rows=plan.block_q,
      grid=(tiles, heads, batch),
      products=2 * dim + self.v.shape[-1],
    )
    return d_q, {n: self._summed(n, x) for n, x in sums.items()}

  def keys(self):
    """Returns the gradients to keys, values and operands along keys."""
    plan, k, v = self.plan, self.k, self.v
    batch, _, heads, dim = self.q.shape
    kv_len = k.shape[1]
    # Query heads that share keys add up outside, in float32.
    d_k, d_v = (
      jax.ShapeDtypeStruct(
        (batch, kv_len, heads, x.shape[3]),
        x.dtype if x.shape[2] == heads else jnp.float32,
      )
      for x in (k, v)
    )
    sums = {
      n: jax.ShapeDtypeStruct((batch, heads, kv_len), jnp.float32)
      for n in _differentiated(plan, self.operands, "k")
    }
    d_k, d_v, sums = self._call(
      _keys_kernel,
      "flash_attention_backward_keys",
      (d_k, d_v, sums),
      self.lists[1:2],
      rows=plan.block_k,
      grid=(kv_len // plan.block_k, heads, batch),
      products=2 * dim + 2 * v.shape[-1],
    )
    d_k, d_v = (
      d
      if x.shape[2] == heads
      else d.reshape(*x.shape[:3], -1, x.shape[3]).sum(axis=3).astype(x.dtype)
      for d, x in ((d_k, k), (d_v, v))
    )
    return d_k, d_v, {n: self._summed(n, x) for n, x in sums.items()}

  def dense(self, number):
    """Returns the gradient to an operand along queries and keys."""
    plan, array = self.plan, self.operands[number]
    if plan.weigh == "ones":
      return jnp.zeros_like(array)
    batch, _, heads, _ = self.q.shape
    sizes = [
      size if axis in plan.axes[number] else 1
      for axis, size in (("b", batch), ("h", heads))
    ]
    q_len, kv_len = array.shape[-2:]
    step = _backward_step(self.q, self.v, plan.block_k)
    d_array = self._call(
      functools.partial(_dense_kernel, number=number),
      "flash_attention_backward_bias",
      jax.ShapeDtypeStruct((*sizes, q_len, kv_len), array.dtype),
      self.lists[2:],
      rows=plan.block_q,
      grid=(kv_len // step, q_len // plan.block_q, math.prod(sizes)),
      products=self.q.shape[-1] + self.v.shape[-1],
    )
    return d_array.reshape(array.shape)

  def _call(self, kernel, name, out_shape, lists, **options):
    arrays = (self.q, self.k, self.v, self.operands, self.indices, lists)
    arrays += (self.d_out, self.lse, self.delta)
    # What more stages load ahead must fit into shared memory and registers.
    wide = max(self.q.shape[3], self.v.shape[3]) > 2 * WIDE
    wide |= any(self.plan.inner(n) == "qk" for n in range(len(self.operands)))
    return _call(
      self.plan,
      kernel,
      name,
      arrays,
      out_shape,
      num_stages=1 if wide else 2,
      **options,
    )

  def _summed(self, number, gradient):
    """Sums [batch, heads, length] over the axes the operand does not have."""
    axes = self.plan.axes[number]
    shared = [i for i, letter in enumerate("bh") if letter not in axes]
    if not self.plan.inner(number):
      shared.append(2)
    return gradient.sum(axis=tuple(shared))


def _differentiated(plan, operands, *inner):
  """Returns which operands with these inner axes have a gradient."""
  return [
    n
    for n in range(plan.mod_operands)
    if plan.inner(n) in inner
    and jnp.issubdtype(operands[n].dtype, jnp.floating)
  ]


def _call(
  plan, kernel, name, arrays, out_shape, *, rows, grid, products, num_stages
):
  q, k, _, _, _, lists, *_ = arrays
  batch, q_len, heads, _ = q.shape
  scores = batch * heads * q_len * k.shape[1]
  if lists:
    # Rows of a list are as long as the longest of them.
    tiles = math.prod(lists[0].shape[2:])
    scores = batch * heads * tiles * plan.block_q * plan.block_k
  return triton.pallas_call(
    functools.partial(kernel, plan),
    name=name,
    grid=grid,
    out_shape=out_shape,
    flops=2 * scores * products,
    bytes_accessed=triton.nbytes(arrays, out_shape),
    transcendentals=scores,
    num_warps=4 if rows <= 64 else 8,
    num_stages=num_stages,
    interpret=plan.interpret,
  )(*arrays)


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


def _forward_kernel(
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


def _queries_kernel(
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
    (k_ref.shape[1], plan.block_k, _backward_step(q_ref, v_ref, plan.block_k)),
    step,
    (_zeros(plan.block_q, q_ref), zeros),
  )
  _store(d_q_ref, place, queries, [x * plan.scale for x in d_q])
  for n, ref in sum_refs.items():
    if plan.inner(n) == "q":
      triton.store(ref, (batch, head, queries), sums[n])
    else:
      triton.store(ref, (batch, head, row), jnp.sum(sums[n]))


def _keys_kernel(
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
    (q_ref.shape[1], plan.block_q, _backward_step(q_ref, v_ref, plan.block_q)),
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


def _dense_kernel(
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
  step = _backward_step(q_ref, v_ref, plan.block_k)
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


def _backward_step(q, v, block):
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
