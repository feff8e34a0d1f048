"""How the window kernels for TPUs are called: their grid and their blocks."""

import functools
from collections.abc import Callable

import jax
from jax.experimental import pallas as pl

from attention.kernels import tpu
from attention.kernels.tpu import LANES, Blocked
from attention.kernels.window_plan import Plan


def call(
  plan: Plan,
  kernel: Callable,
  name: str,
  inputs: tuple,
  outputs: tuple,
  scratch: tuple,
  *,
  product_rows: int,
  exponentials: int,
) -> tuple:
  """Runs `kernel(inputs, outputs, scratch, plan=plan)` on all strips.

  Args:
    plan: the shapes.
    kernel: the kernel.
    name: its name in a profile.
    inputs: as for `tpu.call`, like the next two.
    outputs: results.
    scratch: scratch memory, as for `tpu.call`.
    product_rows: rows of all products that are made for a window and a group,
      each with [heads * keys, lanes].
    exponentials: how often the scores are made and exponentiated.
  """
  windows = plan.batch * plan.rows * plan.columns * plan.groups
  return tpu.call(
    functools.partial(kernel, plan=plan),
    name,
    grid=_grid(plan),
    inputs=inputs,
    outputs=outputs,
    scratch=scratch,
    # One core has all steps of the last two axes. Sums go on from step to step
    # there, and a core clears its own scratch at its first.
    parallel=1,
    vmem_bytes=max(16 * 2**20, plan.vmem_bytes() + 8 * 2**20),
    flops=2 * windows * product_rows * plan.stacked * plan.lanes,
    # The last term is the reciprocals of row sums.
    transcendentals=windows
    * plan.queries
    * (exponentials * plan.stacked + plan.lanes),
    interpret=plan.interpret,
  )


def _grid(plan: Plan) -> tuple[int, int, int]:
  """Two cores, images and strips; or groups, windows and images.

  With the batch in rows, the first axis has groups and cores, the second all
  steps of a group: a batch may be one block.
  Otherwise than with the batch in steps, groups come first because the bias
  belongs to one: it stays in place while all windows of the group pass.
  """
  if plan.batch_minor:
    return (plan.groups, plan.rows * plan.columns, plan.batch // LANES)
  if plan.batch_rows:
    steps = plan.batch // plan.images * plan.window_steps
    return (plan.groups * plan.cores, steps // plan.cores, 1)
  return (
    plan.cores,
    plan.batch // plan.images // plan.cores,
    plan.rows // plan.strips,
  )


def image_spec(plan: Plan) -> pl.BlockSpec:
  """The strips of a step, of an image in `plan.image_shape`."""
  steps = _grid(plan)[1]
  if plan.batch_in != "steps":
    index = _split_index(plan)
  elif plan.grid:
    index = lambda core, i, strip: (core * steps + i, 0, strip, 0, 0)
  else:
    index = lambda core, i, strip: (core * steps + i, strip, 0, 0, 0)
  return pl.BlockSpec(plan.block_shape, index)


def _split_index(plan: Plan) -> Callable:
  """Where a step's block is in an image that is split into windows."""
  steps = _grid(plan)[1]
  columns = plan.columns
  if plan.batch_rows and plan.grid:
    columns //= plan.strips

  def index(first, second, third):
    if plan.batch_minor:
      window, last = second, (first, third)
    else:
      group, core = first // plan.cores, first % plan.cores
      images, window = divmod(core * steps + second, plan.window_steps)
      last = (images, group)
    row, column = window // columns, window % columns
    return (
      (0, row, 0, column, *last) if plan.grid else (row, 0, column, 0, *last)
    )

  return index


def scratch_of(plan: Plan, *, inputs: int, outputs: int) -> list:
  """Scratch memory for strips of inputs and outputs, None where none is needed.

  It holds float32, or words of two bfloat16.
  """
  dtype = "int32" if plan.packed > 1 else "float32"
  strip = jax.ShapeDtypeStruct(plan.scratch_shape, dtype)
  return [None if plan.batch_rows else strip] * inputs + [strip] * outputs


def per_group(plan: Plan, x: jax.Array) -> Blocked:
  """What [groups, ...] holds for the groups of a step."""
  if plan.batch_in == "steps":
    return tpu.whole(x)
  rest = x.shape[1:]
  index = lambda first, *_: (first // plan.cores,) + (0,) * len(rest)
  return Blocked(x, pl.BlockSpec((1, *rest), index))


def bias_sums(plan: Plan) -> Blocked:
  """The gradient of the packed bias, [cores, groups, queries, keys].

  Its block stays in place over all steps of a core (or of a group, whose steps
  are all on one core), so that the kernel adds to it. Each core has a sum of
  its own: two that add to one would race.
  """
  if plan.batch_in == "steps":
    index = lambda core, *_: (core, 0, 0, 0)
  else:
    index = lambda first, *_: (first % plan.cores, first // plan.cores, 0, 0)
  shape = (plan.cores, *plan.bias_shape)
  block = (1, plan.step_groups, *plan.bias_shape[1:])
  return Blocked(
    jax.ShapeDtypeStruct(shape, "float32"), pl.BlockSpec(block, index)
  )
