"""What a program of the halo attention kernels on GPUs does.

A program has the queries of a block as one tile and walks along the keys of the
window, read straight out of the image; what lies beyond the edge reads as zero.
Scores of positions are one product of the queries with the embeddings of their
row (or column) of the block, spread over the keys by a product with zeros and
ones. For the gradients of keys and values a program has the keys of a block and
walks along the blocks of queries whose windows reach it, so that nothing is
added up in an order that could change.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention.kernels import triton
from attention.kernels.flash_plan import LEAST, MASKED

# Keys of one step along a window.
STEP = 64


def forward_kernel(plan, q_ref, k_ref, v_ref, tables, out_ref, lse_ref):
  """The output of some blocks of queries, and their log-sum-exps."""
  head, program = pl.program_id(0), pl.program_id(1)
  dim = triton.tile_size(v_ref.shape[3])

  def block(number, _):
    own = _queries(plan, number)
    # [side^2, dim], in tiles of a power of two.
    q = _load(q_ref, own, head)
    positions = [_positions(plan, q, t, own, a) for a, t in enumerate(tables)]

    def step(i, carry):
      largest, total, out = carry
      keys = _window_keys(plan, number, i)
      k, v = (_load(ref, keys, head) for ref in (k_ref, v_ref))
      scores = _scores(plan, q, k, positions, keys)
      before, largest = largest, jnp.maximum(largest, jnp.max(scores, axis=1))
      # What was summed with the maximum before is worth less by this.
      kept = triton.exp(before - largest)
      weights = triton.exp(scores - largest[:, None])
      total = total * kept + jnp.sum(weights, axis=1)
      out = out * kept[:, None] + triton.dot(weights.astype(v.dtype), v)
      return largest, total, out

    rows = own.pixel.shape[0]
    largest, total, out = lax.fori_loop(
      0,
      pl.cdiv(plan.window**2, STEP),
      step,
      # Above MASKED, so that what lies beyond the edge weighs nothing even in a
      # step that has no other key.
      (
        jnp.full((rows,), LEAST, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, dim), jnp.float32),
      ),
    )
    # Not zero: every query sees its own block.
    _store(out_ref, own, head, out / total[:, None])
    _store_row(lse_ref, own, head, largest + jnp.log(total))

  _for_blocks(plan, program, block, None)


def queries_kernel(
  plan,
  q_ref,
  k_ref,
  v_ref,
  tables,
  out_bar_ref,
  lse_ref,
  delta_ref,
  q_bar_ref,
  table_bar_refs,
):
  """The gradients of some blocks of queries, and their sum of the tables'.

  `table_bar_refs` are [programs, heads, side * channels, offsets] in float32:
  each program leaves a part, and they are summed in one order afterwards.
  """
  head, program = pl.program_id(0), pl.program_id(1)
  dim = triton.tile_size(plan.dim)

  def block(number, tables_bar):
    own = _queries(plan, number)
    q, out_bar = (_load(ref, own, head) for ref in (q_ref, out_bar_ref))
    lse, delta = (_load_row(ref, own, head) for ref in (lse_ref, delta_ref))
    positions = [_positions(plan, q, t, own, a) for a, t in enumerate(tables)]

    def step(i, carry):
      q_bar, positions_bar = carry
      keys = _window_keys(plan, number, i)
      k, v = (_load(ref, keys, head) for ref in (k_ref, v_ref))
      scores = _scores(plan, q, k, positions, keys)
      weights = triton.exp(scores - lse[:, None])
      weights_bar = triton.dot(out_bar, v, transpose_b=True)
      scores_bar = weights * (weights_bar - delta[:, None])
      # Rounded once, for all products: the matrix unit takes two operands of
      # one dtype.
      narrow = scores_bar.astype(k.dtype)
      q_bar += triton.dot(narrow, k)
      # From keys back to places, [queries, offsets]: `_spread` transposed.
      positions_bar = [
        x + triton.dot(narrow, _ones(place, plan.offsets, k.dtype))
        for x, place in zip(positions_bar, keys.place, strict=True)
      ]
      return q_bar, positions_bar

    rows = own.pixel.shape[0]
    q_bar, positions_bar = lax.fori_loop(
      0,
      pl.cdiv(plan.window**2, STEP),
      step,
      (
        jnp.zeros((rows, dim), jnp.float32),
        [jnp.zeros((rows, plan.offsets), jnp.float32)] * 2,
      ),
    )
    q_bar *= plan.scale
    sums = []
    for axis, (bar, table) in enumerate(
      zip(positions_bar, tables, strict=True)
    ):
      narrow = bar.astype(q.dtype)
      # A query met the embeddings of its own row of the block only.
      for row in range(plan.side):
        mine = jnp.where(own.place[axis][:, None] == row, narrow, 0)
        q_bar += triton.dot(mine, _load_table(plan, table, row))
      # The queries, each in the channels of its own row of the block.
      apart = _load_apart(plan, q_ref, own, head, axis)
      sums.append(
        tables_bar[axis] + triton.dot(apart, narrow, transpose_a=True)
      )
    _store(q_bar_ref, own, head, q_bar)
    return sums

  zeros = [jnp.zeros((_apart(plan), plan.offsets), jnp.float32)] * 2
  tables_bar = _for_blocks(plan, program, block, zeros)
  for ref, bar in zip(table_bar_refs, tables_bar, strict=True):
    index = jnp.arange(bar.shape[0])[:, None], jnp.arange(bar.shape[1])[None, :]
    triton.store(ref, (program, head, *index), bar, tails=(2,))


def keys_kernel(
  plan,
  q_ref,
  k_ref,
  v_ref,
  tables,
  out_bar_ref,
  lse_ref,
  delta_ref,
  k_bar_ref,
  v_bar_ref,
):
  """The gradients of the keys and values of some blocks.

  Tiles lie on their side, [keys, queries], so that sums belong to rows.
  """
  head, program = pl.program_id(0), pl.program_id(1)
  # Blocks away, on each side, whose windows reach into this one.
  reach = pl.cdiv(plan.halo, plan.block)
  across = 2 * reach + 1

  def block(number, _):
    own = _block_keys(plan, number)
    k, v = (_load(ref, own, head) for ref in (k_ref, v_ref))

    def step(i, carry):
      k_bar, v_bar = carry
      shifts = [x - reach for x in triton.divide(i, across)]
      queries = _queries(plan, number, shifts)
      q, out_bar = (_load(ref, queries, head) for ref in (q_ref, out_bar_ref))
      lse, delta = (
        _load_row(ref, queries, head) for ref in (lse_ref, delta_ref)
      )
      scores = triton.dot(k, q, transpose_b=True) * plan.scale
      # Blocks beyond the edge have no queries; a window may end within a block.
      seen = queries.seen[None, :] & own.seen[:, None]
      for axis, table in enumerate(tables):
        # Where the window of those queries has these keys.
        place = own.place[axis] - shifts[axis] * plan.block + plan.halo
        position = _positions(plan, q, table, queries, axis)
        scores += _spread(position, place, plan.offsets, q.dtype, turned=True)
        seen &= ((place >= 0) & (place < plan.window))[:, None]
      # Chosen before the exponential: a query that does not exist has a
      # log-sum-exp of 0, and its score may be any number.
      weights = triton.exp(jnp.where(seen, scores - lse[None, :], MASKED))
      v_bar += triton.dot(weights.astype(out_bar.dtype), out_bar)
      weights_bar = triton.dot(v, out_bar, transpose_b=True)
      scores_bar = weights * (weights_bar - delta[None, :])
      k_bar += triton.dot(scores_bar.astype(q.dtype), q)
      return k_bar, v_bar

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (k, v)]
    k_bar, v_bar = lax.fori_loop(0, across**2, step, tuple(zeros))
    _store(k_bar_ref, own, head, k_bar * plan.scale)
    _store(v_bar_ref, own, head, v_bar)

  _for_blocks(plan, program, block, None)


@dataclasses.dataclass(frozen=True)
class _Tokens:
  """Some tokens of an image.

  Attributes:
    image: its number.
    pixel: where they lie, beyond the end for those that do not exist.
    place: row and column of each in its block or window.
    seen: which of them count.
  """

  image: object
  pixel: object
  place: tuple
  seen: object


def _scores(plan, q, k, positions, keys):
  """Returns [queries, keys], MASKED where the window has no key.

  A key beyond the edge is zero, not masked, unless `plan.mask_padding`: its
  score is then that of its position alone.
  """
  scores = triton.dot(q, k, transpose_b=True) * plan.scale
  for axis, position in enumerate(positions):
    scores += _spread(position, keys.place[axis], plan.offsets, q.dtype)
  return jnp.where(keys.seen[None, :], scores, MASKED)


def _for_blocks(plan, program, block, carry):
  """Carries `block(number, carry)` over the blocks of a program."""
  start = program * plan.chunk
  stop = jnp.minimum(start + plan.chunk, plan.blocks)
  return lax.fori_loop(start, stop, block, carry)


def _corner(plan, number):
  """Returns image, row and column of a block."""
  image, number = triton.divide(number, plan.rows * plan.columns)
  return image, *triton.divide(number, plan.columns)


def _queries(plan, number, shifts=(0, 0)):
  """Returns the queries of a block, or of the one `shifts` away."""
  image, row, column = _corner(plan, number)
  row, column = row + shifts[0], column + shifts[1]
  token = jnp.arange(triton.tile_size(plan.side**2))
  place = triton.divide(token, plan.side)
  inside = (row >= 0) & (row < plan.rows) & (column >= 0)
  seen = (token < plan.side**2) & inside & (column < plan.columns)
  width = plan.width // plan.stride
  # Loads drop what lies beyond the end of an axis: that is how a token is left
  # out.
  pixel = (row * plan.side + place[0]) * width + column * plan.side + place[1]
  beyond = plan.height // plan.stride * width
  return _Tokens(image, jnp.where(seen, pixel, beyond), place, seen)


def _block_keys(plan, number):
  """Returns the keys of a block."""
  image, row, column = _corner(plan, number)
  token = jnp.arange(triton.tile_size(plan.block**2))
  place = triton.divide(token, plan.block)
  y, x = row * plan.block + place[0], column * plan.block + place[1]
  seen = token < plan.block**2
  beyond = plan.height * plan.width
  pixel = jnp.where(seen, y * plan.width + x, beyond)
  return _Tokens(image, pixel, place, seen)


def _window_keys(plan, number, step):
  """Returns the keys of one step along the window of a block."""
  image, row, column = _corner(plan, number)
  token = step * STEP + jnp.arange(STEP)
  place = triton.divide(token, plan.window)
  y = row * plan.block - plan.halo + place[0]
  x = column * plan.block - plan.halo + place[1]
  seen = token < plan.window**2
  inside = (y >= 0) & (y < plan.height) & (x >= 0) & (x < plan.width) & seen
  beyond = plan.height * plan.width
  pixel = jnp.where(inside, y * plan.width + x, beyond)
  return _Tokens(image, pixel, place, inside if plan.mask_padding else seen)


def _positions(plan, q, table_ref, queries, axis):
  """Returns products of queries with the embeddings of their row or column.

  [queries, offsets] in float32: a query meets only what is for its own row.
  """
  total = jnp.zeros((q.shape[0], plan.offsets), jnp.float32)
  for row in range(plan.side):
    mine = jnp.where(queries.place[axis][:, None] == row, q, 0)
    table = _load_table(plan, table_ref, row)
    total += triton.dot(mine, table, transpose_b=True)
  return total


def _spread(position, place, offsets, dtype, *, turned=False):
  """Gives each key the column of `position` that its place says.

  In narrow dtypes two parts, which together have the precision of scores.
  """
  ones = _ones(place, offsets, dtype)
  if turned:
    spread = lambda part: triton.dot(ones, part, transpose_b=True)
  else:
    spread = lambda part: triton.dot(part, ones, transpose_b=True)
  high = position.astype(dtype)
  if dtype == jnp.float32:
    return spread(high)
  low = (position - high.astype(jnp.float32)).astype(dtype)
  return spread(high) + spread(low)


def _ones(place, offsets, dtype):
  """Returns [keys, offsets]: one where the key has that place."""
  return (place[:, None] == jnp.arange(offsets)[None, :]).astype(dtype)


def _load_table(plan, ref, row):
  """Returns the embeddings [offsets, dim] for a row of a block."""
  dim = triton.tile_size(plan.dim)
  index = (
    row,
    jnp.arange(plan.offsets)[:, None],
    jnp.arange(dim)[None, :],
  )
  return triton.load(ref, index, tails=(1, 2))


def _apart(plan):
  """Returns the columns of `_load_apart`, a power of two."""
  return triton.tile_size(plan.side * triton.tile_size(plan.dim))


def _load_apart(plan, ref, queries, head, axis):
  """Returns queries [queries, side * dim], zero but for their own row.

  One product with it, transposed, sums the gradients of the tables for all rows
  of the block at once: [side * dim, offsets].
  """
  slot, channel = triton.divide(
    jnp.arange(_apart(plan)), triton.tile_size(plan.dim)
  )
  mine = queries.place[axis][:, None] == slot[None, :]
  channel = jnp.where(mine, channel[None, :], plan.dim)
  index = (queries.image, queries.pixel[:, None], head, channel)
  return triton.load(ref, index, tails=(1, 3))


def _load(ref, tokens, head):
  """Returns [tokens, dim] of [images, pixels, heads, dim], or zeros."""
  index, tails = _index(ref, tokens, head)
  return triton.load(ref, index, tails=tails)


def _store(ref, tokens, head, value):
  index, tails = _index(ref, tokens, head)
  triton.store(ref, index, value, tails=tails)


def _index(ref, tokens, head):
  dim = ref.shape[3]
  tile = triton.tile_size(dim)
  channel = jnp.arange(tile)[None, :]
  index = (tokens.image, tokens.pixel[:, None], head, channel)
  return index, (1, *triton.tail(3, dim, tile))


def _load_row(ref, tokens, head):
  """Returns statistics of tokens, from [images, pixels, heads]."""
  return triton.load(ref, (tokens.image, tokens.pixel, head), tails=(1,))


def _store_row(ref, tokens, head, value):
  triton.store(ref, (tokens.image, tokens.pixel, head), value, tails=(1,))
