"""What the forward and the backward halo kernel on TPUs do in VMEM.

Scratch memory has [groups, rows, lanes] in float32: in the lanes the channels
of a group's heads side by side, in the rows the tokens of a strip, image row
after image row. Image rows of queries lie `query_row` rows apart; those of keys
`key_row`, of which the first `halo` and the last are the zeros beyond the edge,
so that a window at the edge is cut out like any other.

Shapes in comments: N heads of a group, Q rows of a block's queries, K rows of a
window's keys, R position keys, D channels of a head. Scores are [K, N Q], keys
in rows: sums over keys add up registers, and no lane moves.
"""

import math
from collections.abc import Iterable

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels.halo_plan import Plan
from attention.kernels.tpu import MASKED, SUBLANES


def clear_at_first_step(refs: Iterable) -> None:
  """Zeroes references at the first step of a core.

  Scratch memory holds anything then, and what is read as padding must be
  numbers: zero weights times NaN would be NaN. Halos at the sides stay zero
  ever after, as nothing is written there.
  """

  @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
  def _():
    _clear(refs)


def clear_at_first_strip(strip, refs: Iterable) -> None:
  """Zeroes sums that go on from strip to strip of an image, not beyond it."""

  @pl.when(strip == 0)
  def _():
    _clear(refs)


def _clear(refs):
  for ref in refs:
    ref[...] = jnp.zeros_like(ref)


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


def fill_keys(plan: Plan, ref, scratch, strip, dim: int) -> None:
  """Copies the rows that the windows of a strip see, zeros beyond the edge."""
  # The image row of the first row of the windows; before the image at the top.
  first = strip * plan.block - plan.halo

  def fill(row, _):
    inside = (first + row >= 0) & (first + row < plan.height)
    start = row * plan.key_row

    @pl.when(inside)
    def _():
      x = ref[0, first + row].astype(jnp.float32)
      for group in range(plan.groups):
        part = x[:, plan.channels(group, dim)]
        rows = pl.ds(start + plan.halo, plan.width)
        scratch[group, rows, : part.shape[1]] = part

    # The row holds the keys of another strip, or of the image before.
    @pl.when(jnp.logical_not(inside))
    def _():
      rows = pl.ds(start, plan.key_row)
      for group in range(plan.groups):
        scratch[group, rows, :] = jnp.zeros(
          (plan.key_row, scratch.shape[2]), jnp.float32
        )

    return 0

  lax.fori_loop(0, plan.window, fill, 0)


def drain_keys(plan: Plan, scratch, ref, strip, dim: int) -> None:
  """Writes the rows of an image that no later strip adds to.

  `scratch` holds the sums of the rows that the strip's windows see. What
  remains moves to where the next strip has it, with zeros behind it.
  """
  first = strip * plan.block - plan.halo
  last = strip == plan.rows - 1

  def drain(row, _):
    inside = (first + row >= 0) & (first + row < plan.height)

    # The windows of the next strip start `block` rows further down: what is
    # above is complete. After the last strip all is.
    @pl.when(inside & ((row < plan.block) | last))
    def _():
      for group in range(plan.groups):
        lanes = plan.channels(group, dim)
        rows = pl.ds(row * plan.key_row + plan.halo, plan.width)
        part = scratch[group, rows, : lanes.stop - lanes.start]
        ref[0, first + row, :, lanes] = part.astype(ref.dtype)

    return 0

  # The 2 halo rows that both strips see go up by `block` rows, in order, so
  # that where they overlap each is read before it is written.
  def move(row, _):
    for group in range(plan.groups):
      source = pl.ds((row + plan.block) * plan.key_row, plan.key_row)
      scratch[group, pl.ds(row * plan.key_row, plan.key_row), :] = scratch[
        group, source, :
      ]
    return 0

  lax.fori_loop(0, plan.window, drain, 0)
  if plan.halo:
    lax.fori_loop(0, 2 * plan.halo, move, 0)
  rows = pl.ds(2 * plan.halo * plan.key_row, plan.block * plan.key_row)
  zeros = jnp.zeros((rows.size, scratch.shape[2]), jnp.float32)
  for group in range(plan.groups):
    scratch[group, rows, :] = zeros


def load_queries(plan: Plan, scratch, group: int, column):
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


def store_queries(plan: Plan, scratch, group: int, column, x) -> None:
  """Writes the tokens of a block [queries, lanes], without the padding."""
  for row in range(plan.side):
    rows = pl.ds(row * plan.query_row + column * plan.side, plan.side)
    start = row * plan.padded_side
    scratch[group, rows, :] = x[start : start + plan.side]


def load_keys(plan: Plan, scratch, group: int, column):
  """Returns a window [keys, lanes]; the padding holds other tokens."""
  rows = [
    scratch[
      group,
      pl.ds(row * plan.key_row + column * plan.block, plan.padded_window),
      :,
    ]
    for row in range(plan.window)
  ]
  # Up to whole bfloat16 tiles of 16 rows.
  extra = plan.keys - plan.window * plan.padded_window
  if extra:
    rows.append(jnp.zeros((extra, scratch.shape[2]), jnp.float32))
  return jnp.concatenate(rows).astype(plan.dtype)


def add_keys(plan: Plan, scratch, group: int, column, x) -> None:
  """Adds a window [keys, lanes] to a strip; the padding of x must be 0."""
  for row in range(plan.window):
    start = row * plan.key_row + column * plan.block
    rows = pl.ds(start, plan.padded_window)
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


def unstack(plan: Plan, x, mask):
  """Returns [queries, lanes], each lane from its head's rows of the stack."""
  # A row of head h has, in the lanes of another head, h's weights with that
  # head's values: of no meaning.
  x = x * mask
  parts = [
    x[head * plan.queries : (head + 1) * plan.queries]
    for head in range(plan.group_size)
  ]
  return sum(parts[1:], parts[0])


def product(plan: Plan, x, y, contract=(1, 0)):
  """Returns the product over axis `contract[0]` of x and `contract[1]` of y."""
  return lax.dot_general(
    x.astype(plan.dtype),
    y.astype(plan.dtype),
    (((contract[0],), (contract[1],)), ((), ())),
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


def scores(plan: Plan, place, queries, all_keys, own_rows_ref):
  """Returns the scores [keys, stacked] times log2(e), MASKED where no key is.

  Args:
    plan: the shapes.
    place: the strip and the column of the block.
    queries: [stacked, lanes], block-diagonal.
    all_keys: keys and position keys [all_keys, lanes].
    own_rows_ref: [axes, 8, stacked] of `own_rows`.
  """
  # [K + R, N D] [N Q, N D]^T -> [K + R, N Q], contents and positions at once.
  x = product(plan, all_keys, queries, (1, 1))
  by_row, by_column = (
    _own_scores(plan, x[plan.keys :], axis, own_rows_ref) for axis in range(2)
  )
  size = plan.padded_window
  # Row i of the window: [size, N Q] of its keys j. Their column's score is one
  # for each j, their row's is row i of `by_row`, the same for all.
  rows = [
    x[i * size : (i + 1) * size] + (by_column + by_row[i : i + 1])
    for i in range(plan.window)
  ]
  if plan.keys > plan.window * size:
    rows.append(x[plan.window * size : plan.keys])
  # In base two: exp2 is one instruction, exp is exp2 and a product.
  x = jnp.concatenate(rows) * (plan.scale * math.log2(math.e))
  # Chosen after the sums, so that whatever the padding holds is dropped.
  return jnp.where(_visible(plan, place, x.shape), x, MASKED)


def _own_scores(plan: Plan, x, axis: int, own_rows_ref):
  """Returns [padded_window, stacked]: those of each query's row or column.

  `x` [R, N Q] has a query's scores with the position keys of all rows y of a
  block, one stretch of `padded_window` after another; its own are one of them.
  Choosing is an instruction a register and row y, a gather would be far more.
  """
  size = plan.padded_window
  rows = lambda i: x[axis * plan.axis_keys + i * size :][:size]
  own = _own_rows(plan, axis, own_rows_ref)
  out = rows(0)
  for i in range(1, plan.side):
    out = jnp.where(own == i, rows(i), out)
  return out


def _own_rows(plan: Plan, axis: int, own_rows_ref):
  """Returns [padded_window, stacked], the same in each row."""
  return jnp.concatenate(
    [own_rows_ref[axis]] * (plan.padded_window // SUBLANES)
  )


def position_gradients(plan: Plan, scores_bar, own_rows_ref, row_sums):
  """Returns the gradients of the scores of position keys.

  Args:
    plan: the shapes.
    scores_bar: gradients of the scores of keys [keys, stacked], float32.
    own_rows_ref: [axes, 8, stacked] of `own_rows`.
    row_sums: [padded_window, keys] of `row_sums`.

  Returns:
    [position_keys, stacked] in float32.
  """
  # A position key's score was added to all keys of a row (or column) of the
  # window: its gradient is their sum. Over each row of the window by a product
  # with zeros and ones, [size, K] [K, N Q]; over columns the rows of the window
  # add up as they lie. Then each query's go to the keys of its own y (or x).
  size = plan.padded_window
  rows = [scores_bar[i * size : (i + 1) * size] for i in range(plan.window)]
  sums = (product(plan, row_sums, scores_bar), sum(rows[1:], rows[0]))
  parts = []
  for axis, x in enumerate(sums):
    own = _own_rows(plan, axis, own_rows_ref)
    parts += [jnp.where(own == i, x, 0.0) for i in range(plan.side)]
  extra = plan.position_keys - 2 * plan.axis_keys
  if extra:
    parts.append(jnp.zeros((extra, plan.stacked), jnp.float32))
  return jnp.concatenate(parts)


def _visible(plan: Plan, place, shape):
  """Whether a row of [K, N Q] is a key of the window, and of the image.

  The block itself always is, so that no query goes without keys.
  """
  key = lax.broadcasted_iota(jnp.int32, shape, 0)
  i, j = key // plan.padded_window, key % plan.padded_window
  visible = (j < plan.window) & (i < plan.window)
  if plan.mask_padding:
    i += place[0] * plan.block - plan.halo
    j += place[1] * plan.block - plan.halo
    visible &= (i >= 0) & (i < plan.height) & (j >= 0) & (j < plan.width)
  return visible


def for_blocks(plan: Plan, body, unroll: int) -> None:
  """Calls `body(column, group)` for the blocks of a strip.

  Of several blocks a turn the products of one run while the exponentials of
  another do; more than divide the strip, or than registers hold, are no gain.
  """
  if plan.interpret:
    # Nothing is gained there, and twice the code compiled.
    unroll = 1
  unroll = max(
    n
    for n in range(1, plan.columns + 1)
    if plan.columns % n == 0 and n * plan.groups <= max(unroll, plan.groups)
  )

  def turn(i, carry):
    for j in range(unroll):
      for group in range(plan.groups):
        body(i * unroll + j, group)
    return carry

  lax.fori_loop(0, plan.columns // unroll, turn, jnp.int32(0))
