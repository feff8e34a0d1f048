"""What a program of the flash kernels on GPUs does with tiles.

Where it is, how it walks along a row of tiles, how it reads arrays, and how a
tile of scores is made. A tile is [rows, columns]: queries in rows, or keys
(`turned`). Score modifications and masks are elementwise, so that they see
turned positions and never notice.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attention.kernels import triton
from attention.kernels.flash_plan import LIST_BASE, MASKED
from attention.mask_base import EMPTY, MIXED
from attention.tiles import Tile

# Most keys or queries of a step along a tile; the backward pass takes shorter
# steps where the sums it holds are wide.
STEP = 64
WIDE = 64


class Arrays(NamedTuple):
  """The arrays of a call, and in a kernel the references to them, whole.

  Attributes:
    q: [batch, q_len, heads, dim].
    k, v: [batch, kv_len, few heads, dim].
    operands: arrays of the score modifications and then of the mask.
    indices: numbers of the batch elements and of the heads in the whole call,
      of which this device has a part; and where it has a part of the sequence,
      the positions of its first query and of its first key, [2].
    lists: the list of tiles [batch, heads, rows, longest] that a kernel walks
      along, or nothing.
    d_out: gradient of the output, like `q` but as wide as `v`; None in the
      forward pass, like the next two.
    lse: log-sum-exp of queries [batch, heads, q_len]; large and positive for
      those that see nothing, whose weights are then zero.
    delta: what the softmax takes from the gradient of each weight, like `lse`.
  """

  q: Any
  k: Any
  v: Any
  operands: Any
  indices: Any
  lists: Any
  d_out: Any = None
  lse: Any = None
  delta: Any = None


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a program or a step of it is.

  Attributes:
    batch, head: numbers of what the arrays here hold.
    heads: how many heads the queries have here.
    indices: the same for the whole call, of which this device has a part.
    first: positions of the first query and the first key here, in the whole
      call; None if both are 0.
    queries, keys: positions here, one of them None where a step has to say.
    turned: whether keys are the rows of a tile.
  """

  batch: object
  head: object
  heads: int
  indices: tuple
  first: tuple | None = None
  queries: object = None
  keys: object = None
  turned: bool = False

  def at(self, **positions):
    """The same with the positions of a step."""
    return dataclasses.replace(self, **positions)

  # Positions along rows are a column, those along columns a row.

  @property
  def q_index(self):
    return self.queries[None, :] if self.turned else self.queries[:, None]

  @property
  def k_index(self):
    return self.keys[:, None] if self.turned else self.keys[None, :]

  @property
  def tile(self):
    if self.first is None:
      return Tile(*self.indices, self.q_index, self.k_index)
    q_first, k_first = self.first
    return Tile(*self.indices, self.q_index + q_first, self.k_index + k_first)


def place_of(arrays: Arrays, head, batch, **more) -> Place:
  """Returns the place of a program, with `more` of the fields of `Place`."""
  *indices, first = (*arrays.indices, None)[:3]
  numbers = (
    triton.load(ref, (i,))
    for ref, i in zip(indices, (batch, head), strict=True)
  )
  if first is not None:
    first = triton.load(first, (0,)), triton.load(first, (1,))
  heads = indices[1].shape[0]
  return Place(batch, head, heads, tuple(numbers), first, **more)


def walk(plan, lists, place, row, others, step, carry):
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
  # Without a list all tiles are full: the row is one run of steps.
  if not lists:

    def every(i, carry):
      return step(i * size + jnp.arange(size), None, carry)

    return lax.fori_loop(0, length // size, every, carry)

  # Triton has no grid that ends early: a program counts the tiles that are not
  # EMPTY, which stand first, and takes as many turns.
  (list_ref,) = lists
  count = jnp.sum(_entries(list_ref, place, row) % LIST_BASE != EMPTY)
  parts = block // size

  # A loop over all steps rather than one in another: Triton loads the next
  # step's tiles ahead within one loop only.
  def listed(i, carry):
    i, part = triton.divide(i, parts)
    entry = triton.load(list_ref, (*_lead(list_ref, place), row, i))
    tile, state = triton.divide(entry, LIST_BASE)
    return step(tile * block + part * size + jnp.arange(size), state, carry)

  return lax.fori_loop(0, count.astype(jnp.int32) * parts, listed, carry)


def state_at(plan, lists, place, row, key):
  """Returns the state of the tile of a row that has a key, None without lists.

  `lists` here is the states of all tiles, [batch, heads, rows, columns].
  """
  if not lists:
    return None
  column, _ = triton.divide(key, plan.block_k)
  return triton.load(lists[0], (*_lead(lists[0], place), row, column))


def backward_step(q, v, block):
  """Returns how many keys (or queries) a step of the backward pass takes."""
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


def made_again(plan, rows, columns, d_rows, d_columns, place, statistics, more):
  """Makes a tile of scores again, for gradients.

  Args:
    plan: the plan.
    rows: queries (or keys), in pieces of their channels.
    columns: keys (or queries).
    d_rows: what the gradients of weights are products of: the gradients of the
      outputs where queries are rows, values where keys are.
    d_columns: function that loads the other, to be called when scores are made:
      until then registers are free of it.
    place: where the tile is.
    statistics: log-sum-exp and delta of the queries, which broadcast.
    more: operands, the state of the tile, and numbers of operands wanted.

  Returns:
    The weights; the gradients to the products of queries and keys; and those to
    the values of the operands wanted, by number, each a whole tile. For sums of
    values the last two are None.
  """
  lse, delta = statistics
  operands, state, wanted = more
  modified, pull = scores(plan, rows, columns, place, operands, state, wanted)
  weights = weights_of(plan, modified, lse)
  if plan.weigh == "ones":
    return weights, None, None
  d_weights = product(d_rows, d_columns())
  d_scores, d_values = pull(_score_gradient(plan, weights, d_weights, delta))
  if plan.mask is not None and plan.mods:
    # The slope of a modification may be infinite, or NaN, where the mask hides
    # a score; what it hid shows in the score.
    hidden = modified == MASKED
    d_scores = jnp.where(hidden, 0.0, d_scores)
    d_values = {n: jnp.where(hidden, 0.0, x) for n, x in d_values.items()}
  return weights, d_scores, d_values


def scores(plan, rows, columns, place, operands, state, wanted=None):
  """Returns a tile of scores and the function that pulls gradients back.

  That takes the gradient to the scores and returns the gradient to the product
  of queries and keys, and those to the values of the operands `wanted`, each a
  whole tile.
  """
  if plan.weigh == "ones":
    scores = jnp.zeros((rows[0].shape[0], columns[0].shape[0]), jnp.float32)
    return _masked(plan, scores, place, operands, state), None
  scores = product(rows, columns) * plan.scale
  pull = lambda gradient: (gradient, {})
  if plan.mods:
    values = [
      _value(plan, n, operands[n], place) for n in range(plan.mod_operands)
    ]
    # Spread over the tile before JAX differentiates, or it would sum over what
    # the value is shared by; sums belong outside of the loop.
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
  """Returns MASKED where a mixed tile's mask hides a score.

  After the modifications, so that whatever they make of it is dropped. A
  program branches on the state, so that the mask costs nothing on full tiles.
  """
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


def seen_only(scores, v):
  """Returns values with zeros for those that no query sees: they may be NaN."""
  # [rows, keys] -> [keys, 1]
  seen = jnp.max((scores != MASKED).astype(jnp.int32), axis=0)[:, None] > 0
  return [jnp.where(seen, x, jnp.zeros_like(x)) for x in v]


def _value(plan, number, ref, place):
  """Returns the part of an operand that belongs to a tile."""
  positions = {
    "b": place.batch,
    "h": place.head,
    "q": place.q_index,
    "k": place.k_index,
  }
  value = triton.load(ref, [positions[axis] for axis in plan.axes[number]])
  # Along queries, keys or both the positions have given it two axes already.
  if value.ndim == 0:
    value = jnp.full((1, 1), value)
  if plan.booleans[number]:
    return value != 0
  if jnp.issubdtype(value.dtype, jnp.floating):
    return value.astype(jnp.float32)
  return value


def weights_of(plan, scores, lse):
  """Returns weights of scores; those of MASKED scores are exactly zero."""
  match plan.weigh:
    case "softmax":
      return triton.exp(scores - lse)
    case "sigmoid":
      return 1.0 / (1.0 + triton.exp(-scores))
    case "ones":
      return triton.exp(scores)


def _score_gradient(plan, weights, d_weights, delta):
  """Returns the gradients to scores from those to weights."""
  if plan.weigh == "sigmoid":
    return weights * (1.0 - weights) * d_weights
  return weights * (d_weights - delta)


def product(rows, columns):
  """Returns rows columns^T, summed over the pieces of their channels."""
  return sum(
    triton.dot(a, b, transpose_b=True)
    for a, b in zip(rows, columns, strict=True)
  )


def add_product(sums, weights, columns):
  """Adds weights times columns to sums, both in pieces of their channels.

  Weights are rounded to the dtype of what they multiply, as matrix units take
  both operands in one.
  """
  return [
    x + triton.dot(weights.astype(part.dtype), part)
    for x, part in zip(sums, columns, strict=True)
  ]


def zeros(rows, ref):
  """Returns sums that are still zero, as wide as the heads of an array."""
  return [
    jnp.zeros((rows, size), jnp.float32)
    for _, size in triton.pieces(ref.shape[3])
  ]


def load(ref, place, positions):
  """Returns rows of [batch, length, heads, dim] in pieces of their channels.

  Sides of a tile are powers of two in Triton. A head of 96 channels is a piece
  of 64 and one of 32 rather than one of 128, a quarter of it zeros.
  """
  return [
    triton.load(ref, index, tails=tails)
    for index, tails in _pieces(ref, place, positions)
  ]


def store(ref, place, positions, pieces):
  """Writes what `load` would return."""
  for (index, tails), piece in zip(
    _pieces(ref, place, positions), pieces, strict=True
  ):
    triton.store(ref, index, piece, tails=tails)


def _pieces(ref, place, positions):
  """Yields the index of each piece, and along which axes it ends beyond."""
  # Where there are fewer heads of keys, neighbouring heads of queries share.
  _, length, heads, dim = ref.shape
  head, _ = triton.divide(place.head, place.heads // heads)
  for start, size in triton.pieces(dim):
    index = (
      place.batch,
      positions[:, None],
      head,
      start + jnp.arange(size)[None, :],
    )
    tails = () if start + size <= dim else (3,)
    # Where arrays are padded to whole tiles there is nothing beyond.
    yield index, triton.tail(1, length, positions.shape[0]) + tails
