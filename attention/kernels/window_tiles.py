"""What the forward and the backward window kernel on TPUs do in VMEM.

A strip lies in scratch memory as [groups, rows, lanes]: in the lanes the
channels of a group's heads side by side, in the rows the tokens. Of those there
are two orders. With channels last in the image, a scratch row is a token of the
strip, image row after image row, and a window is P runs of P rows, one apart in
block attention and `columns` apart in grid attention: a strided load cuts it
out. With the batch in lanes, the strip is the same window of 128 images, and a
window is all rows of one image in one piece.

With the batch in rows, the strip is the same window of some images, and strided
loads cut a window out of the block itself: each gets the windows of two images
in bfloat16, which share 32-bit words. Only results go through scratch memory.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels.tpu import LANES, SUBLANES
from attention.kernels.window_plan import Plan

# Row sums of weights between which nothing of importance has underflowed or
# overflowed: float32 has 2^-126 to 2^127, and what a weight below 2^-26 of the
# sum loses is beyond its 24 bits.
SMALLEST = 2.0**-100
LARGEST = 2.0**100
# It moved in jax 0.11.
_reciprocal = (
  pltpu.reciprocal if hasattr(pltpu, "reciprocal") else pl.reciprocal
)


class Window(NamedTuple):
  """A window of a strip.

  Attributes:
    first: number of the first window that a turn of the loop works on.
    offset: how far behind it this one is, which the compiler knows.
  """

  first: Any
  offset: int

  @property
  def number(self):
    return self.first + self.offset


def first_channel(plan: Plan):
  """The channel that blocks start at. To be called outside of loops."""
  if plan.step_groups == plan.groups:
    return 0
  return pl.program_id(0) // plan.cores * plan.block_channels


def clear_at_first_step(refs: Iterable) -> None:
  """Zeroes references at the first step that a core (or a group) has.

  Scratch memory holds anything then, and what is read as padding must be
  numbers: zero weights times NaN would be NaN.
  """

  @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
  def _():
    for ref in refs:
      ref[...] = jnp.zeros_like(ref)


def _strip_row(plan: Plan, ref, strip, row):
  """[width, channels] of a block as a reference."""
  image, strip = strip // plan.strips, strip % plan.strips
  return ref.at[(image, row, strip) if plan.grid else (image, strip, row)]


def fill(plan: Plan, ref, scratch, strip, first_channel) -> None:
  """Copies a strip to scratch memory, in float32 and group by group.

  There, any rows at any stride are one load away, which is how a window is
  cut: tiles of 16-bit numbers can be read only whole.
  """
  if plan.batch_minor:
    _fill_transposed(plan, ref, scratch, first_channel)
    return
  for row in range(plan.side):
    # [width, heads * dim]
    x = _strip_row(plan, ref, strip, row)[...].astype(jnp.float32)
    # Each image row starts at a whole register, so that the copy is aligned.
    rows = pl.ds(row * plan.row_stride, plan.width)
    for group in range(plan.groups):
      # The last group may be narrower: its other lanes stay as they are.
      part = x[:, plan.channels(group)]
      scratch[group, rows, : part.shape[1]] = part


def drain(plan: Plan, scratch, ref, strip) -> None:
  """Copies a strip from scratch memory: the inverse of `fill`."""
  if plan.batch_minor:
    _drain_transposed(plan, scratch, ref)
    return
  if plan.batch_rows:
    _drain_words(plan, scratch, ref, strip)
    return
  for row in range(plan.side):
    rows = pl.ds(row * plan.row_stride, plan.width)
    out = _strip_row(plan, ref, strip, row)
    for group in range(plan.groups):
      lanes = plan.channels(group)
      part = scratch[group, rows, : lanes.stop - lanes.start]
      out[:, lanes] = part.astype(out.dtype)


def _fill_transposed(plan: Plan, ref, scratch, first_channel) -> None:
  """Copies the same window of 128 images, which comes with images in lanes.

  [P, P, channels, images] -> [images * queries, channels]: the channels must
  come into the lanes, for they are what products sum over.
  """
  channels = plan.block_channels

  def one_row(row, _):
    for column in range(plan.side):
      # [channels, images]
      x = _token(plan, ref, row, column)[...].astype(jnp.float32)
      if plan.heads * plan.dim % channels:
        # The last group ends beyond the image, where there may be anything.
        channel = first_channel + lax.broadcasted_iota(jnp.int32, x.shape, 0)
        x = jnp.where(channel < plan.heads * plan.dim, x, 0.0)
      # To the rows of this token in all images, `queries` rows apart.
      rows = _token_rows(plan, row, column)
      scratch.at[0][rows, :channels] = x.T
    return 0

  lax.fori_loop(0, plan.side, one_row, 0)


def _drain_transposed(plan: Plan, scratch, ref) -> None:
  """The inverse of `_fill_transposed`."""

  def one_row(row, _):
    for column in range(plan.side):
      x = scratch.at[0][_token_rows(plan, row, column), :].T
      out = _token(plan, ref, row, column)
      out[...] = x[: plan.block_channels].astype(ref.dtype)
    return 0

  lax.fori_loop(0, plan.side, one_row, 0)


def _token(plan: Plan, ref, row, column):
  """[channels, images] of a token of the windows of a block, a reference."""
  return ref.at[(row, 0, column, 0) if plan.grid else (0, row, 0, column)]


def _token_rows(plan: Plan, row, column):
  """Where a token of all windows of a strip is in scratch memory."""
  return pl.ds(row * plan.side + column, LANES, stride=plan.queries)


def _drain_words(plan: Plan, scratch, ref, strip) -> None:
  """Copies what `_store_words` has written to a strip of a block."""
  for row in range(plan.side):
    for column in range(plan.side):
      start = (row * plan.side + column) * plan.row_words
      part = scratch[0, pl.ds(start, plan.row_words), : plan.block_channels]
      place = (row, 0, column, strip) if plan.grid else (strip, row, 0, column)
      ref.at[place][...] = pltpu.bitcast(part, ref.dtype)


def _load_words(
  plan: Plan, ref, strip, first_channel, group: int, windows
) -> list:
  """Returns the windows of images that share words, [queries, lanes] each."""
  del group  # There is one.
  tokens = plan.side**2
  rows = tokens * plan.strips * plan.row_words
  x = ref.reshape(rows * plan.packed, plan.block_channels)
  if plan.packed > 1:
    x = x.bitcast(jnp.int32)
  # Words of the first token, and from one to the next.
  start, stride = strip * tokens * plan.row_words, plan.row_words
  if plan.grid:
    start, stride = strip * plan.row_words, plan.strips * plan.row_words
  # A strided load must start at a place within a tile that the compiler knows.
  tile = plan.unroll // plan.packed
  first = lax.div(jnp.int32(windows[0].first), jnp.int32(plan.packed))
  start = pl.multiple_of(start + first, tile)
  x = x.at[pl.ds(start, (tokens - 1) * stride + tile)]
  x = x[pl.ds(windows[0].offset // plan.packed, tokens, stride=stride), :]
  missing = (plan.queries - tokens, plan.lanes - plan.block_channels)
  x = jnp.pad(x, [(0, n) for n in missing])
  channels = plan.heads * plan.dim
  if channels % plan.block_channels:
    # The last group ends beyond the image, where there may be anything.
    channel = first_channel + lax.broadcasted_iota(jnp.int32, x.shape, 1)
    x = jnp.where(channel < channels, x, jnp.zeros_like(x))
  if plan.packed == 1:
    return [x]
  # A bfloat16 is the upper half of a float32, and of two images that share a
  # word the first has the lower half.
  halves = (x << 16, x & jnp.int32(-(2**16)))
  return [lax.bitcast_convert_type(half, jnp.float32) for half in halves]


def _store_words(plan: Plan, scratch, windows, values: list) -> None:
  """Writes windows [queries, lanes] of images that share words."""
  x = values[0] if plan.packed == 1 else _pack(plan, values)
  word = lax.div(jnp.int32(windows[0].number), jnp.int32(plan.packed))
  scratch.at[0][pl.ds(word, plan.queries, stride=plan.row_words), :] = x


def _pack(plan: Plan, pair):
  """Rounds two float32 arrays to bfloat16 and returns them as words."""
  if not plan.interpret:
    x = pltpu.pack_elementwise(pair, packed_dtype=jnp.bfloat16)
    return lax.bitcast_convert_type(x, jnp.int32)
  # It has no rule for other platforms.
  first, second = (
    lax.bitcast_convert_type(
      x.astype(jnp.bfloat16).astype(jnp.float32), jnp.int32
    )
    for x in pair
  )
  return lax.shift_right_logical(first, 16) | second


def _image_rows(plan: Plan, window):
  """Where a window of an image is; `queries` is whole registers of 8 rows."""
  return pl.ds(pl.multiple_of(window * plan.queries, 8), plan.queries)


def _load(plan: Plan, scratch, group: int, windows) -> list:
  """Returns a window [queries, lanes]; the padding holds other tokens."""
  (window,) = windows
  if plan.batch_minor:
    return [scratch.at[group][_image_rows(plan, window.number), :]]
  column = plan.first_column(window.number)
  # Each row of the window is read with padding up to a whole register, so that
  # the pieces lie one below the other without moving rows about. The padding is
  # the next tokens of the strip, of whatever window.
  parts = [
    scratch.at[group][_columns(plan, row, column, plan.padded_run), :]
    for row in range(plan.side)
  ]
  return [jnp.concatenate(parts)]


def store(plan: Plan, scratch, group: int, windows, values: list) -> None:
  """Writes windows [queries, lanes] to where `drain` takes them from."""
  if plan.batch_rows:
    _store_words(plan, scratch, windows, values)
    return
  (window,), (x,) = windows, values
  if plan.batch_minor:
    scratch.at[group][_image_rows(plan, window.number), :] = x
    return
  column = plan.first_column(window.number)
  for row in range(plan.side):
    start = row * plan.padded_run
    columns = _columns(plan, row, column, plan.side)
    scratch.at[group][columns, :] = x[start : start + plan.side]


def _columns(plan: Plan, row: int, column, size: int):
  """The scratch rows of `size` neighbours within a row of a window."""
  start = row * plan.row_stride + column
  if plan.stride == 1:
    return pl.ds(start, size)
  return pl.ds(start, size, stride=plan.stride)


def stack(plan: Plan, x, bits, heads: int):
  """Returns the block-diagonal [heads * keys, lanes] of [queries, lanes].

  What other heads and the padding hold is cut off bit by bit: it may be
  anything, even infinite.
  """
  if plan.keys > plan.queries:
    # Up to whole bfloat16 tiles of 16 rows, which stacking must not cut.
    padding = jnp.zeros((plan.keys - plan.queries, plan.lanes), x.dtype)
    x = jnp.concatenate([x, padding])
  x = jnp.concatenate([x.astype(plan.dtype)] * heads)
  # An "and" is one instruction for a register of either dtype, and unlike a
  # product with 0 it makes zeros of NaN and infinities as well.
  bits = bits[: pltpu.bitcast(x, jnp.int32).shape[0]]
  return pltpu.bitcast(pltpu.bitcast(x, jnp.int32) & bits, x.dtype)


def product(plan: Plan, x, y, *, transposed: bool = False):
  """Returns x y, or x y^T, in float32."""
  return lax.dot_general(
    x.astype(plan.dtype),
    y.astype(plan.dtype),
    (((1,), (1 if transposed else 0,)), ((), ())),
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


def reciprocal(plan: Plan, x, *, zeros: bool):
  """Returns 1 / x, exact to the precision of the plan's dtype.

  Args:
    plan: the shapes.
    x: row sums of weights.
    zeros: whether sums may be zero, which then has the reciprocal zero: a
      query whose bias hides all keys gets zeros. Where maxima are not
      subtracted that is an extreme sum, and done again with this.
  """
  if plan.dtype == "float32":
    inverse = 1.0 / x
  else:
    # One step of Newton's after the approximation. Division proper spends more
    # instructions on zeros and infinities than the rest of the kernel on the
    # output.
    inverse = _reciprocal(x, approx=True)
    inverse = inverse * (2.0 - x * inverse)
  return jnp.where(x == 0.0, 0.0, inverse) if zeros else inverse


def subtract_maxima(plan: Plan, scores):
  """Subtracts from [queries, heads * keys] the maximum of each head's keys.

  Any number of the row's size would do, as it cancels, but the heads of a group
  share a row: one maximum for all would underflow a head of low scores.
  """
  head = lax.broadcasted_iota(jnp.int32, scores.shape, 1) // plan.keys
  maxima = jnp.zeros_like(scores)
  for h in range(scores.shape[1] // plan.keys):
    own = jnp.where(head == h, scores, -jnp.inf)
    maxima = jnp.where(head == h, finite_maxima(own, axis=1), maxima)
  return scores - maxima


def finite_maxima(x, axis: int):
  """Returns the maxima along an axis, 0 where all is -inf.

  Then -inf - 0 is still -inf and the weights are zero, where -inf - -inf would
  be NaN.
  """
  maxima = jnp.max(x, axis=axis, keepdims=True)
  return jnp.where(maxima == -jnp.inf, 0.0, maxima)


def in_range(sums, good):
  """Zeroes `good` [8, lanes] where a row sum [queries, lanes] is extreme.

  NaN compares as extreme. One register for all rows and heads: what is asked at
  the end is only whether there was any.
  """
  fine = (sums > SMALLEST) & (sums < LARGEST)
  for start in range(0, sums.shape[0], 8):
    good = jnp.where(fine[start : start + 8], good, 0.0)
  return good


def for_windows(plan: Plan, body, carry, unroll: int):
  """Carries `body(parts, carry)` over the windows of a strip.

  Several windows a turn: they do not depend on each other, so that the products
  of one run while the exponentials of another do. `parts` are lists of
  `plan.packed` of them each.
  """
  turns = plan.windows // unroll

  def turn(i, carry):
    windows = [Window(i * unroll, j) for j in range(unroll)]
    starts = range(0, unroll, plan.packed)
    return body([windows[j : j + plan.packed] for j in starts], carry)

  return turn(0, carry) if turns == 1 else lax.fori_loop(0, turns, turn, carry)


def for_strips(
  plan: Plan, read, written, first_channel, attend: Callable, good
):
  """Carries `attend(loads, good)` over the strips of a grid step.

  Args:
    plan: the shapes.
    read: pairs of a block and the scratch memory to fill with a strip of it,
      which is None with the batch in rows.
    written: pairs of a block and the scratch memory to drain into a strip.
    first_channel: of `first_channel`.
    attend: what to do with a strip. `loads` has a function for each of `read`
      that returns `plan.packed` windows [queries, lanes] in float32, given
      their group and their numbers. The padding of their rows holds zeros or
      tokens of other windows.
    good: what it carries.
  """

  def body(strip, good):
    loads = []
    for ref, scratch in read:
      if plan.batch_rows:
        load = functools.partial(_load_words, plan, ref, strip, first_channel)
      else:
        fill(plan, ref, scratch, strip, first_channel)
        load = functools.partial(_load, plan, scratch)
      loads.append(load)
    good = attend(loads, good)
    for ref, scratch in written:
      drain(plan, scratch, ref, strip)
    return good

  return lax.fori_loop(0, plan.step_strips, body, good)


def again_if_extreme(plan: Plan, run: Callable) -> None:
  """Does a grid step without maxima, and again with them if that was not exact.

  The exponential of plain scores is exact unless scores are extreme, beyond 69
  in nats. Whether they were shows in the row sums, and then the work is done
  again with the maximum of each row subtracted. Maxima go along lanes, which
  costs more than all products.

  Args:
    plan: the shapes.
    run: `run(good, subtract_maxima, unroll)` does all strips and returns `good`
      with zeros where row sums were extreme.
  """
  good = jnp.ones((SUBLANES, plan.lanes), jnp.float32)
  good = run(good, subtract_maxima=False, unroll=plan.unroll)

  @pl.when(jnp.logical_not(jnp.min(good) > 0.0))
  def _():
    # Rare, so small code rather than fast code.
    unroll = plan.unroll if plan.batch_rows else 1
    run(jnp.ones_like(good), subtract_maxima=True, unroll=unroll)
