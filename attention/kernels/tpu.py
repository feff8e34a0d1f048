"""What several kernels for TPUs share: registers, masks of bits, the call."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# A vector register is 8 sublanes of 128 lanes: the last axis of an array lies
# along lanes, the one before along sublanes, and both are padded to whole
# registers. A 16-bit dtype packs two rows into a sublane, so its tiles have 16.
LANES = 128
SUBLANES = 8
# Score of a key that is not there; finite, so that differences stay numbers.
MASKED = -1e30
DTYPES = ("bfloat16", "float32")


class Blocked(NamedTuple):
  """An array, or the shape of a result, and what a grid step gets of it."""

  array: jax.Array | jax.ShapeDtypeStruct
  spec: pl.BlockSpec


def call(
  kernel: Callable,
  name: str,
  *,
  grid: Sequence[int],
  inputs: tuple,
  outputs: tuple,
  scratch: tuple | None = None,
  scalars: Sequence[jax.Array] = (),
  parallel: int = 1,
  vmem_bytes: int,
  flops: int,
  transcendentals: int,
  interpret: bool,
) -> tuple:
  """Runs a kernel over a grid; it finds its references by name.

  Args:
    kernel: `kernel(*scalars, inputs, outputs, scratch)`. The last three are the
      NamedTuples given here, with references in the place of arrays.
    name: name of the kernel in a profile.
    grid: numbers of steps; the last axis varies fastest.
    inputs: a NamedTuple of `Blocked` or lists of them.
    outputs: the same for results. A field that is None stays None.
    scratch: a NamedTuple of shapes of float32 arrays, or of
      `jax.ShapeDtypeStruct`, that stay in VMEM from step to step, or None.
    scalars: int32 arrays to be kept in scalar memory, which the index maps of
      blocks get too, after the step.
    parallel: how many of the first axes of the grid may be shared out to cores.
      The others run in order, so that scratch and outputs that stay in place
      carry sums from step to step.
    vmem_bytes: the most VMEM the compiler may use.
    flops: floating-point operations of all steps together.
    transcendentals: exponentials and the like that they evaluate.
    interpret: whether Pallas's interpreter runs the kernel.

  Returns:
    `outputs` with arrays in the place of shapes.
  """
  arrays, in_specs = _apart(inputs)
  shapes, out_specs = _apart(outputs)
  buffers = jax.tree.map(_buffer, scratch, is_leaf=lambda x: type(x) is tuple)
  # Pallas hands on trees as they are, each argument and result one tree.
  (results,) = pl.pallas_call(
    kernel,
    name=name,
    out_shape=(shapes,),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=tuple(grid),
      in_specs=(in_specs,),
      out_specs=(out_specs,),
      scratch_shapes=(buffers,),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * parallel
      + ("arbitrary",) * (len(grid) - parallel),
      vmem_limit_bytes=vmem_bytes,
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops,
      transcendentals=transcendentals,
      # Each array once: blocks that stay in place are not fetched again.
      bytes_accessed=sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves((arrays, shapes))
      ),
    ),
    interpret=interpret,
  )(*scalars, arrays)
  return results


def _buffer(x: tuple | jax.ShapeDtypeStruct):
  """Returns scratch memory of a shape, or of a shape and dtype."""
  if isinstance(x, tuple):
    return pltpu.VMEM(x, jnp.float32)
  return pltpu.VMEM(x.shape, x.dtype)


def _apart(blocked):
  """Returns the tree of arrays and the tree of their specs."""
  leaf = lambda x: isinstance(x, Blocked)
  return tuple(
    jax.tree.map(lambda x, i=i: x[i], blocked, is_leaf=leaf) for i in range(2)
  )


def whole(x: jax.Array | jax.ShapeDtypeStruct) -> Blocked:
  """All of an array at every step, fetched once: a second buffer is no use."""
  return Blocked(
    x,
    pl.BlockSpec(
      x.shape, lambda *_: (0,) * x.ndim, pipeline_mode=pl.Buffered(1)
    ),
  )


def round_up(x: int, multiple: int) -> int:
  """The least multiple that is not less than `x`."""
  return -(-x // multiple) * multiple


def unsupported_arrays(q, k, v) -> str | None:
  """Says why dtypes or sizes do not suit a kernel, or returns None."""
  for name, x in (("q", q), ("k", k), ("v", v)):
    if x.dtype != q.dtype or x.dtype.name not in DTYPES:
      return (
        f"{name} is {x.dtype.name}; the kernel needs q, k and v of one dtype, "
        f"{' or '.join(DTYPES)}"
      )
    if 0 in x.shape:
      return (
        f"{name} has shape {x.shape}; the kernel needs at least one element"
      )
  return None


def pack_mask(mask: np.ndarray, dtype: str):
  """Returns a mask as bits, to be combined by "and" with what it masks.

  Args:
    mask: booleans [rows, lanes].
    dtype: name of the dtype of what is masked, read as int32. In bfloat16 two
      rows share one integer.

  Returns:
    int32 [rows, lanes], or half as many rows.
  """
  if dtype == "float32":
    return jnp.asarray(np.where(mask, -1, 0).astype(np.int32))
  half = np.where(mask, 0xFFFF, 0).astype(np.uint32)
  return jnp.asarray((half[::2] | half[1::2] << 16).view(np.int32))
