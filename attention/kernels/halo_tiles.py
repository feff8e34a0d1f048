"""What the forward and the backward halo kernel on TPUs do in VMEM.

Scratch memory has [groups, rows, lanes] in float32: in the lanes the channels
of a group's heads side by side, in the rows the tokens of a strip, image row
after image row. Image rows of queries lie `query_row` rows apart; those of keys
`key_row`, of which the first `key_left` and the last are the zeros beyond the
edge, so that a window at the edge is cut out like any other.

Shapes in comments: N heads of a group, Q rows of a block's queries, K rows of a
window's keys, R position keys, D channels of a head. Scores are [K, N Q], keys
in rows: sums over keys add up registers, and no lane moves.
"""

import math
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels.halo_plan import Plan
from attention.kernels.tpu import MASKED, SUBLANES


def clear_at_first_step(refs: Iterable) -> None:
  """Zeroes references [first, ..., rows, lanes] at the first step of a core.

  Scratch memory holds anything then, and what is read as padding must be
  numbers: zero weights times NaN would be NaN. Halos at the sides stay zero
  ever after, as nothing is written there.
  """

  @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
  def _():
    for ref in refs:
      zeros = jnp.zeros((SUBLANES, ref.shape[-1]), jnp.float32)

      def clear(row, _, ref=ref, zeros=zeros):
        rows = pl.ds(pl.multiple_of(row * SUBLANES, SUBLANES), SUBLANES)
        for place in np.ndindex(ref.shape[:-2]):
          ref[*place, rows, :] = zeros
        return 0

      lax.fori_loop(0, ref.shape[-2] // SUBLANES, clear, 0)


def fill_queries(plan: Plan, ref, scratch, dim: int) -> None:
  """Copies a strip [1, side, width, channels] to scratch memory in float32.

  There, any rows are one load away, which is how a block is cut out: tiles of
  16-bit numbers can be read only whole.
  """
  for row in range(plan.side):
    # [width, heads * dim]
    x = ref[0, row].astype(jnp.float32)
    rows = pl.ds(row * plan.query_row, x.shape[0])
    for group in range(plan.groups):
      part = x[:, plan.channels(group, dim)]
      scratch[group, rows, : part.shape[1]] = part


def drain_queries(plan: Plan, scratch, ref, dim: int) -> None:
  """Copies a strip from scratch memory: the inverse of `fill_queries`."""
  for row in range(plan.side):
    rows = pl.ds(row * plan.query_row, ref.shape[2])
    for group in range(plan.groups):
      lanes = plan.channels(group, dim)
      part = scratch[group, rows, : lanes.stop - lanes.start]
      ref[0, row, :, lanes] = part.astype(ref.dtype)


def fill_keys(plan: Plan, strip, *images) -> None:
  """Copies the rows that the windows of a strip see, zeros beyond the edge.

  Args:
    plan: the shapes.
    strip: number of the strip.
    *images: (reference, scratch, channels of a head) of keys and of values.
  """
  # The image row of the first row of the windows; before the image at the top.
  first = strip * plan.block - plan.halo

  def fill(row, _):
    inside = (first + row >= 0) & (first + row < plan.height)
    # Beyond the edge any row will do, to be read and dropped.
    place = jnp.clip(first + row, 0, plan.height - 1)
    rows = pl.ds(row * plan.key_row + plan.key_left, plan.width)
    for ref, scratch, dim in images:
      x = jnp.where(inside, ref[0, place].astype(jnp.float32), 0.0)
      for group in range(plan.groups):
        part = x[:, plan.channels(group, dim)]
        scratch[group, rows, : part.shape[1]] = part
    return 0

  lax.fori_loop(0, plan.window, fill, 0)


def drain_keys(plan: Plan, strip, *images) -> None:
  """Writes the rows of images that no later strip adds to.

  Scratch memory holds the sums of the rows that the strip's windows see. What
  remains moves to where the next strip has it, with zeros behind it; the next
  image starts with nothing but zeros.

  Args:
    plan: the shapes.
    strip: number of the strip.
    *images: (scratch, reference, channels of a head) of keys and of values.
  """
  first = strip * plan.block - plan.halo
  last = strip == plan.rows - 1

  def drain(row, _):
    inside = (first + row >= 0) & (first + row < plan.height)

    # The windows of the next strip start `block` rows further down: what is
    # above is complete. After the last strip all is.
    @pl.when(inside & ((row < plan.block) | last))
    def _():
      rows = pl.ds(row * plan.key_row + plan.key_left, plan.width)
      for scratch, ref, dim in images:
        for group in range(plan.groups):
          lanes = plan.channels(group, dim)
          part = scratch[group, rows, : lanes.stop - lanes.start]
          ref[0, first + row, :, lanes] = part.astype(ref.dtype)

    return 0

  # The 2 halo rows that both strips see go up by `block` rows, in order, so
  # that where they overlap each is read before it is written.
  def move(row, _):
    source = pl.ds((row + plan.block) * plan.key_row, plan.key_row)
    for scratch, _, _ in images:
      for group in range(plan.groups):
        x = jnp.where(last, 0.0, scratch[group, source, :])
        scratch[group, pl.ds(row * plan.key_row, plan.key_row), :] = x
    return 0

  def clear(row, _):
    rows = pl.ds((2 * plan.halo + row) * plan.key_row, plan.key_row)
    for scratch, _, _ in images:
      zeros = jnp.zeros((plan.key_row, scratch.shape[2]), jnp.float32)
      for group in range(plan.groups):
        scratch[group, rows, :] = zeros
    return 0

  lax.fori_loop(0, plan.window, drain, 0)
  if plan.halo:
    lax.fori_loop(0, 2 * plan.halo, move, 0)
  lax.fori_loop(0, plan.block, clear, 0)


def load_queries(plan: Plan, scratch, group, column):
  """Returns a block [queries, lanes]; the padding holds other tokens."""
  start = column * plan.side
  # Each row of the block is read with padding up to a whole register, so that
  # the pieces lie one below the other without moving rows about.
  return jnp.concatenate(
    [
      scratch[group, pl.ds(row * plan.query_row + start, plan.padded_side), :]
      for row in range(plan.side)
    ]
  )


def store_queries(plan: Plan, scratch, group, column, x) -> None:
  """Writes the tokens of a block [queries, lanes], without the padding."""
  for row in range(plan.side):
    rows = pl.ds(row * plan.query_row + column * plan.side, plan.side)
    start = row * plan.padded_side
    scratch[group, rows, :] = x[start : start + plan.side]


def load_keys(plan: Plan, scratch, group, column):
  """Returns a window [keys, lanes]; the padding holds other tokens."""
  rows = [
    scratch[
      group,
      pl.ds(_window_start(plan, row, column), plan.padded_window),
      :,
    ]
    for row in range(plan.window)
  ]
  # Up to whole bfloat16 tiles of 16 rows.
  extra = plan.keys - plan.window * plan.padded_window
  if extra:
    rows.append(jnp.zeros((extra, scratch.shape[2]), jnp.float32))
  return jnp.concatenate(rows).astype(plan.dtype)


def _window_start(plan: Plan, row: int, column):
  left = plan.key_left - plan.halo
  return row * plan.key_row + left + column * plan.block


def add_keys(plan: Plan, scratch, group, column, x) -> None:
  """Adds a window [keys, lanes] to a strip; the padding of x must be 0."""
  for row in range(plan.window):
    rows = pl.ds(_window_start(plan, row, column), plan.padded_window)
    part = x[row * plan.padded_window : (row + 1) * plan.padded_window]
    scratch[group, rows, :] = scratch[group, rows, :] + part


def stack(plan: Plan, x, bits):
  """Returns the block-diagonal [stacked, lanes] of [queries, lanes].

  What other heads and the padding hold is cut off bit by bit: it may be
  anything, even infinite.
  """
  x = [x] * plan.group_size
  # Queries become the lanes of scores, so the stack has whole registers of 128.
  extra = plan.stacked - plan.group_size * plan.queries
  if extra:
    x.append(jnp.zeros((extra, x[0].shape[1]), jnp.float32))
  x = jnp.concatenate(x).astype(plan.dtype)
  return pltpu.bitcast(pltpu.bitcast(x, jnp.int32) & bits, x.dtype)


def own_channels(plan: Plan, x, dim: int):
  """Returns [queries, lanes] of [lanes, stacked], each head's own channels."""
  # Columns of head h have, in the rows of another head, h's weights with that
  # head's values: of no meaning.
  parts = [
    x[head * dim : (head + 1) * dim, head * plan.queries :][:, : plan.queries]
    for head in range(plan.group_size)
  ]
  missing = x.shape[0] - plan.group_size * dim
  if missing:
    parts.append(jnp.zeros((missing, plan.queries), jnp.float32))
  return jnp.concatenate(parts).T


def product(plan: Plan, x, y, contract=(1, 0)):
  """Returns the product over axis `contract[0]` of x and `contract[1]` of y."""
  return lax.dot_general(
    x.astype(plan.dtype),
    y.astype(plan.dtype),
    (((contract[0],), (contract[1],)), ((), ())),
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


def scores(
  plan: Plan, place, queries, all_keys, own_rows_ref, scratch, subtract=0.0
):
  """Returns the scores [keys, stacked] times log2(e), MASKED where no key is.

  Args:
    plan: the shapes.
    place: the strip and the column of the block.
    queries: [stacked, lanes], block-diagonal.
    all_keys: position keys and keys [all_keys, lanes].
    own_rows_ref: [axes, 8, stacked] of `own_rows`.
    scratch: for the scores of positions, [axes, axis_keys, stacked].
    subtract: what is taken from all scores of a query, [1, stacked].
  """
  # [R + K, N D] [N Q, N D]^T -> [R + K, N Q], positions and contents at once;
  # positions first, since all else waits for them.
  x = product(plan, all_keys, queries, (1, 1))
  # In base two: exp2 is one instruction, exp is exp2 and a product.
  factor = plan.scale * math.log2(math.e)
  # What hides a key is added with the scores of positions, which are few.
  by_row, by_column = (
    jnp.where(
      _visible(plan, place, axis, (plan.padded_window, plan.stacked)),
      factor * _own_scores(plan, x, axis, own_rows_ref, scratch),
      MASKED,
    )
    for axis in range(2)
  )
  by_column -= subtract
  x = x[plan.position_keys :]
  size = plan.padded_window
  # Row i of the window: [size, N Q] of its keys j. Their column's score is one
  # for each j, their row's is row i of `by_row`, the same for all.
  rows = [
    factor * x[i * size : (i + 1) * size] + (by_column + by_row[i : i + 1])
    for i in range(plan.window)
  ]
  if plan.keys > plan.window * size:
    missing = (plan.keys - plan.window * size, plan.stacked)
    rows.append(jnp.full(missing, MASKED, jnp.float32))
  return jnp.concatenate(rows)


def _own_scores(plan: Plan, x, axis: int, own_rows_ref, scratch):
  """Returns [padded_window, stacked]: those of each query's row or column.

  `x` [R, N Q] has a query's scores with all position keys of an axis. Its own
  are a stretch of them, which starts at another row for each y: one load away
  from scratch memory, then chosen by an instruction a register and row y.
  """
  size = plan.axis_keys
  scratch[axis] = x[axis * size : (axis + 1) * size]
  own = _own_rows(axis, own_rows_ref, plan.padded_window)
  stretch = lambda y: scratch[
    axis, pl.ds(plan.side - 1 - y, plan.padded_window), :
  ]
  out = stretch(0)
  for y in range(1, plan.side):
    out = jnp.where(own == y, stretch(y), out)
  return out


def _own_rows(axis: int, own_rows_ref, rows: int):
  """Returns [rows, stacked], the same in each row."""
  return jnp.concatenate([own_rows_ref[axis]] * (rows // SUBLANES))


def position_gradients(plan: Plan, scores_bar, own_rows_ref, row_sums, scratch):
  """Returns the gradients of the scores of position keys.

  Args:
    plan: the shapes.
    scores_bar: gradients of the scores of keys [keys, stacked], float32.
    own_rows_ref: [axes, 8, stacked] of `own_rows`.
    row_sums: [padded_window, keys] of `row_sums`.
    scratch: [axes, margin + axis_keys, stacked], zeros but where this writes.

  Returns:
    [position_keys, stacked] in float32.
  """
  # A position key's score was added to all keys of a row (or column) of the
  # window: its gradient is their sum. Over each row of the window by a product
  # with zeros and ones, [size, K] [K, N Q]; over columns the rows of the window
  # add up as they lie. Then each query's move by its own y (or x).
  size = plan.padded_window
  rows = [scores_bar[i * size : (i + 1) * size] for i in range(plan.window)]
  sums = (product(plan, row_sums, scores_bar), sum(rows[1:], rows[0]))
  parts = []
  for axis, x in enumerate(sums):
    scratch[axis, pl.ds(plan.margin, size), :] = x
    own = _own_rows(axis, own_rows_ref, plan.axis_keys)
    moved = lambda y, axis=axis: scratch[
      axis, pl.ds(plan.margin - plan.side + 1 + y, plan.axis_keys), :
    ]
    out = moved(0)
    for y in range(1, plan.side):
      out = jnp.where(own == y, moved(y), out)
    parts.append(out)
  extra = plan.position_keys - 2 * plan.axis_keys
  if extra:
    parts.append(jnp.zeros((extra, plan.stacked), jnp.float32))
  return jnp.concatenate(parts)


def _visible(plan: Plan, place, axis: int, shape):
  """Whether a row (or column) of the window is one, and of the image.

  Those of the block itself always are, so that no query goes without keys.
  """
  i = lax.broadcasted_iota(jnp.int32, shape, 0)
  visible = i < plan.window
  if plan.mask_padding:
    i += place[axis] * plan.block - plan.halo
    visible &= (i >= 0) & (i < (plan.height, plan.width)[axis])
  return visible


def for_blocks(plan: Plan, body) -> None:
  """Does `body(column, group, slot)` for the blocks and groups of a strip.

  A turn of the loop does several, each with scratch memory of its own by its
  slot. `body` yields where the others are to come up to the same place: the
  compiler overlaps what is written side by side.
  """
  blocks = plan.blocks_a_turn

  def turn(i, carry):
    parts = [
      body(i * blocks + j, group, j * plan.groups + group)
      for j in range(blocks)
      for group in range(plan.groups)
    ]
    for _ in zip(*parts, strict=True):
      pass
    return carry

  lax.fori_loop(0, plan.columns // blocks, turn, jnp.int32(0))


def for_groups(plan: Plan, body) -> None:
  """Does the same one group a turn: the least code."""

  def turn(i, carry):
    for _ in body(i // plan.groups, i % plan.groups, 0):
      pass
    return carry

  lax.fori_loop(0, plan.columns * plan.groups, turn, jnp.int32(0))
