"""What the forward and the backward window kernel on TPUs do in VMEM."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels.window_plan import Plan

# Row sums of weights between which nothing of importance has underflowed.
SMALLEST = 2.0**-100
LARGEST = 2.0**100


def block_spec(plan: Plan) -> pl.BlockSpec:
  """Strips of the image for the grid of `grid_of`."""
  steps = plan.batch // plan.images // plan.cores
  if plan.grid:
    index = lambda core, i, strip: (core * steps + i, 0, strip, 0, 0)
  else:
    index = lambda core, i, strip: (core * steps + i, strip, 0, 0, 0)
  return pl.BlockSpec(plan.block_shape, index)


def whole_spec(x) -> pl.BlockSpec:
  """All of an array, fetched once."""
  return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def grid_of(plan: Plan) -> tuple[int, int, int]:
  return (
    plan.cores,
    plan.batch // plan.images // plan.cores,
    plan.rows // plan.strips,
  )


def compiler_params(plan: Plan) -> pltpu.CompilerParams:
  return pltpu.CompilerParams(
    # Scratch memory and sums go on from step to step, but not between cores.
    dimension_semantics=("parallel", "arbitrary", "arbitrary"),
    vmem_limit_bytes=max(16 * 2**20, 2 * plan.vmem_bytes()),
  )


def first_step():
  return (pl.program_id(1) == 0) & (pl.program_id(2) == 0)


def _strip_row(plan: Plan, ref, strip, row):
  """[width, channels] of a block as a reference."""
  image, strip = strip // plan.strips, strip % plan.strips
  return ref.at[(image, row, strip) if plan.grid else (image, strip, row)]


def fill(plan: Plan, ref, scratch, strip) -> None:
  """Copies a strip to scratch memory, in float32 and group by group.

  There, any rows at any stride are one load away, which is how a window is
  cut: tiles of 16-bit numbers can be read only whole.
  """
  for row in range(plan.side):
    x = _strip_row(plan, ref, strip, row)[...].astype(jnp.float32)
    rows = pl.ds(row * plan.row_stride, plan.width)
    for group in range(plan.groups):
      part = x[:, plan.channels(group)]
      scratch[group, rows, : part.shape[1]] = part


def drain(plan: Plan, scratch, ref, strip) -> None:
  """Copies a strip from scratch memory: the inverse of `fill`."""
  for row in range(plan.side):
    rows = pl.ds(row * plan.row_stride, plan.width)
    out = _strip_row(plan, ref, strip, row)
    for group in range(plan.groups):
      lanes = plan.channels(group)
      part = scratch[group, rows, : lanes.stop - lanes.start]
      out[:, lanes] = part.astype(out.dtype)


def load(plan: Plan, scratch, group: int, window):
  """Returns a window [queries, lanes]; the padding holds other tokens."""
  column = plan.first_column(window)
  return jnp.concatenate(
    [
      scratch.at[group][_columns(plan, row, column, plan.padded_side), :]
      for row in range(plan.side)
    ]
  )


def store(plan: Plan, scratch, group: int, window, x) -> None:
  """Writes the tokens of a window [queries, lanes], without the padding."""
  column = plan.first_column(window)
  for row in range(plan.side):
    start = row * plan.padded_side
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
  approximate = pl.reciprocal(x, approx=True)
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
  turns = plan.columns // unroll

  def turn(i, carry):
    return body([i * unroll + j for j in range(unroll)], carry)

  return turn(0, carry) if turns == 1 else lax.fori_loop(0, turns, turn, carry)


def for_strips(plan: Plan, body, carry):
  """Carries `body(strip, carry)` over the strips of a grid step."""
  return lax.fori_loop(0, plan.images * plan.strips, body, carry)


def all_good(good) -> jax.Array:
  return jnp.min(good) > 0.0
