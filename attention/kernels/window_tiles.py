"""What the forward and the backward window kernel on TPUs do in VMEM.

A strip lies in scratch memory as [groups, rows, lanes]: in the lanes the
channels of a group's heads side by side, in the rows the tokens. Of those there
are two orders. With channels last in the image, a scratch row is a token of the
strip, image row after image row, and a window is P runs of P rows, one apart in
block attention and `columns` apart in grid attention: a strided load cuts it
out. With the batch last, the strip is the same window of 128 images, and a
window is all rows of one image in one piece.
"""

from collections.abc import Callable, Iterable

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


def first_channel(plan: Plan):
  """The channel that blocks start at. To be called outside of loops."""
  return pl.program_id(0) * plan.block_channels if plan.batch_minor else 0


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


def _image_rows(plan: Plan, window):
  """Where a window of an image is; `queries` is whole registers of 8 rows."""
  return pl.ds(pl.multiple_of(window * plan.queries, 8), plan.queries)


def load(plan: Plan, scratch, group: int, window):
  """Returns a window [queries, lanes]; the padding holds other tokens."""
  if plan.batch_minor:
    return scratch.at[group][_image_rows(plan, window), :]
  column = plan.first_column(window)
  # Each row of the window is read with padding up to a whole register, so that
  # the pieces lie one below the other without moving rows about. The padding is
  # the next tokens of the strip, of whatever window.
  return jnp.concatenate(
    [
      scratch.at[group][_columns(plan, row, column, plan.padded_run), :]
      for row in range(plan.side)
    ]
  )


def store(plan: Plan, scratch, group: int, window, x) -> None:
  """Writes the tokens of a window [queries, lanes], without the padding."""
  if plan.batch_minor:
    scratch.at[group][_image_rows(plan, window), :] = x
    return
  column = plan.first_column(window)
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
  """Carries `body(windows, carry)` over the windows of a strip.

  Several windows a turn: they do not depend on each other, so that the products
  of one run while the exponentials of another do.
  """
  turns = plan.windows // unroll

  def turn(i, carry):
    return body([i * unroll + j for j in range(unroll)], carry)

  return turn(0, carry) if turns == 1 else lax.fori_loop(0, turns, turn, carry)


def for_strips(
  plan: Plan, read, written, first_channel, attend: Callable, good
):
  """Carries `attend(good)` over the strips of a grid step.

  Args:
    plan: the shapes.
    read: pairs of a block and the scratch memory to fill with a strip of it.
    written: pairs of a block and the scratch memory to drain into a strip.
    first_channel: of `first_channel`.
    attend: what to do with a strip when it is in scratch memory.
    good: what it carries.
  """

  def body(strip, good):
    for ref, scratch in read:
      fill(plan, ref, scratch, strip, first_channel)
    good = attend(good)
    for ref, scratch in written:
      drain(plan, scratch, ref, strip)
    return good

  return lax.fori_loop(0, plan.images * plan.strips, body, good)


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
    run(jnp.ones_like(good), subtract_maxima=True, unroll=1)
