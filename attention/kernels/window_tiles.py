"""What the forward and the backward window kernel on TPUs do in VMEM."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels.tpu import LANES
from attention.kernels.window_plan import Plan

# Row sums of weights between which nothing of importance has underflowed.
SMALLEST = 2.0**-100
LARGEST = 2.0**100
# It moved in jax 0.11.
_reciprocal = (
  pltpu.reciprocal if hasattr(pltpu, "reciprocal") else pl.reciprocal
)


def block_spec(plan: Plan) -> pl.BlockSpec:
  """Strips of the image for the grid of `grid_of`."""
  steps = plan.batch // plan.images // plan.cores
  if plan.batch_minor:

    def index(group, window, images):
      row, column = window // plan.columns, window % plan.columns
      if plan.grid:
        return (0, row, 0, column, group, images)
      return (row, 0, column, 0, group, images)
  elif plan.grid:
    index = lambda core, i, strip: (core * steps + i, 0, strip, 0, 0)
  else:
    index = lambda core, i, strip: (core * steps + i, strip, 0, 0, 0)
  return pl.BlockSpec(plan.block_shape, index)


def whole_spec(x) -> pl.BlockSpec:
  """All of an array, fetched once."""
  return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def group_spec(plan: Plan, x) -> pl.BlockSpec:
  """What an array holds for the groups of a grid step, its first axis."""
  if not plan.batch_minor:
    return whole_spec(x)
  rest = x.shape[1:]
  return pl.BlockSpec((1, *rest), lambda group, *_: (group,) + (0,) * len(rest))


def grid_of(plan: Plan) -> tuple[int, int, int]:
  """Two cores, images and strips; or groups, windows and images."""
  if plan.batch_minor:
    return (plan.groups, plan.rows * plan.columns, plan.batch // LANES)
  return (
    plan.cores,
    plan.batch // plan.images // plan.cores,
    plan.rows // plan.strips,
  )


def compiler_params(plan: Plan) -> pltpu.CompilerParams:
  return pltpu.CompilerParams(
    # Scratch memory and sums go on from step to step, but not between cores.
    dimension_semantics=("parallel", "arbitrary", "arbitrary"),
    vmem_limit_bytes=max(16 * 2**20, plan.vmem_bytes() + 8 * 2**20),
  )


def first_channel(plan: Plan):
  """The channel that blocks start at. To be called outside of loops."""
  return pl.program_id(0) * plan.block_channels if plan.batch_minor else 0


def first_step():
  return (pl.program_id(1) == 0) & (pl.program_id(2) == 0)


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
    x = _strip_row(plan, ref, strip, row)[...].astype(jnp.float32)
    rows = pl.ds(row * plan.row_stride, plan.width)
    for group in range(plan.groups):
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
  channels = plan.block_channels

  def one_row(row, _):
    for column in range(plan.side):
      # [channels, images]
      x = _token(plan, ref, row, column)[...].astype(jnp.float32)
      if plan.heads * plan.dim % channels:
        # The last group ends beyond the image, where there may be anything.
        channel = first_channel + lax.broadcasted_iota(jnp.int32, x.shape, 0)
        x = jnp.where(channel < plan.heads * plan.dim, x, 0.0)
      rows = _token_rows(plan, row, column)
      scratch.at[0][rows, :channels] = x.T
    return 0

  lax.fori_loop(0, plan.side, one_row, 0)


def _drain_transposed(plan: Plan, scratch, ref) -> None:
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
  return pl.ds(pl.multiple_of(window * plan.queries, 8), plan.queries)


def load(plan: Plan, scratch, group: int, window):
  """Returns a window [queries, lanes]; the padding holds other tokens."""
  if plan.batch_minor:
    return scratch.at[group][_image_rows(plan, window), :]
  column = plan.first_column(window)
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
    padding = jnp.zeros((plan.keys - plan.queries, plan.lanes), x.dtype)
    x = jnp.concatenate([x, padding])
  x = jnp.concatenate([x.astype(plan.dtype)] * heads)
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


def reciprocal(plan: Plan, x):
  """Returns 1 / x, exact to the precision of the plan's dtype."""
  if plan.dtype == "float32":
    return 1.0 / x
  # Division proper spends more instructions on zeros and infinities than the
  # rest of the kernel on the output.
  approximate = _reciprocal(x, approx=True)
  return approximate * (2.0 - x * approximate)


def subtract_maxima(plan: Plan, scores):
  """Subtracts from [queries, heads * keys] the maximum of each head's keys."""
  head = lax.broadcasted_iota(jnp.int32, scores.shape, 1) // plan.keys
  maxima = jnp.zeros_like(scores)
  for h in range(scores.shape[1] // plan.keys):
    own = jnp.where(head == h, scores, -jnp.inf)
    maxima = jnp.where(head == h, jnp.max(own, axis=1, keepdims=True), maxima)
  return scores - maxima


def in_range(sums, good):
  """Zeroes `good` [8, lanes] where a row sum [queries, lanes] is extreme."""
  fine = (sums > SMALLEST) & (sums < LARGEST)
  for start in range(0, sums.shape[0], 8):
    good = jnp.where(fine[start : start + 8], good, 0.0)
  return good


def for_windows(plan: Plan, body, carry, unroll: int):
  """Carries `body(windows, carry)` over the windows of a strip."""
  turns = plan.windows // unroll

  def turn(i, carry):
    return body([i * unroll + j for j in range(unroll)], carry)

  return turn(0, carry) if turns == 1 else lax.fori_loop(0, turns, turn, carry)


def for_strips(plan: Plan, body, carry):
  """Carries `body(strip, carry)` over the strips of a grid step."""
  return lax.fori_loop(0, plan.images * plan.strips, body, carry)


def all_good(good) -> jax.Array:
  return jnp.min(good) > 0.0
