"""How the halo kernels for TPUs are called: their grid and their blocks."""

import functools
from collections.abc import Callable

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from attention.kernels import dispatch, tpu
from attention.kernels.halo_plan import Plan
from attention.kernels.tpu import Blocked


def call(
  plan: Plan,
  kernel: Callable,
  name: str,
  direction: str,
  inputs: tuple,
  outputs: tuple,
  scratch: tuple,
  *,
  key_macs: int,
  position_products: int,
  exponentials: int,
) -> tuple:
  """Runs `kernel(inputs, outputs, scratch, plan=plan)` on all strips.

  Args:
    plan: the shapes.
    kernel: the kernel.
    name: its name in a profile.
    direction: "forward" or "backward".
    inputs: as for `tpu.call`, like the next two.
    outputs: results.
    scratch: shapes of scratch memory.
    key_macs: multiply-adds for each score.
    position_products: products of queries with position keys.
    exponentials: of a block's stack of queries, one row each.
  """
  blocks = plan.batch * plan.rows * plan.columns * plan.groups
  macs = plan.keys * key_macs
  macs += position_products * plan.position_keys * plan.lanes
  return tpu.call(
    functools.partial(kernel, plan=plan),
    name,
    # Strips of an image are neighbours in time: its keys and values stay in
    # place, and so do the sums of their gradients.
    grid=(plan.cores, plan.batch // plan.cores, plan.rows),
    inputs=inputs,
    outputs=outputs,
    scratch=scratch,
    # One core has all strips of an image, and clears its own scratch.
    parallel=1,
    vmem_bytes=min(
      vmem_capacity(), max(16 * 2**20, plan.vmem_bytes(direction) * 3 // 2)
    ),
    flops=2 * blocks * plan.stacked * macs,
    transcendentals=blocks * exponentials * plan.stacked,
    interpret=plan.interpret,
  )


def vmem_capacity() -> int:
  """Bytes of VMEM of a core; where no TPU is, the least since TPU v5."""
  if dispatch.chip()[0] != "tpu":
    return 64 * 2**20
  return pltpu.get_tpu_info().vmem_capacity_bytes


def whole_image(plan: Plan, x: jax.Array | jax.ShapeDtypeStruct) -> Blocked:
  """One image of [batch, height, width, channels] at a time.

  It stays the same from strip to strip, so that it is fetched (or written)
  once.
  """
  images = plan.batch // plan.cores
  index = lambda core, i, strip: (core * images + i, 0, 0, 0)
  return Blocked(x, pl.BlockSpec((1, *x.shape[1:]), index))


def strips(
  plan: Plan, x: jax.Array | jax.ShapeDtypeStruct, rows: int
) -> Blocked:
  """One strip of `rows` rows of an image at a time."""
  images = plan.batch // plan.cores
  index = lambda core, i, strip: (core * images + i, strip, 0, 0)
  return Blocked(x, pl.BlockSpec((1, rows, *x.shape[2:]), index))


def position_sums(plan: Plan) -> Blocked:
  """The gradient of position keys, [cores, position_keys, lanes] in float32.

  Its block stays in place over all steps of a core, so that the kernel adds to
  it. Each core has a sum of its own: two that add to one would race.
  """
  shape = (plan.cores, plan.position_keys, plan.lanes)
  return Blocked(
    jax.ShapeDtypeStruct(shape, "float32"),
    pl.BlockSpec((1, *shape[1:]), lambda core, *_: (core, 0, 0)),
  )
