"""The one module that knows Pallas's Triton backend, our way to NVIDIA GPUs.

Kernels here get whole arrays and read tiles of them through indices: the only
form that Triton needs no scalar prefetch for, and that one source serves from
A100 to B200 with. The backend is deprecated from jax 0.11 on; what replaces it
(Mosaic GPU, or Triton's own bindings) replaces this module.

What differs between jax 0.10.2 and 0.12 and is settled here:

- Without `CompilerParams` of Triton a call goes to another backend in some
  versions, so they are always given.
- From 0.11 on, lowering warns that the backend is deprecated.
- `pl.dot` is gone in 0.12, and `jnp.dot` does not accumulate bfloat16 in
  float32.
- A profile shows the name of the Python function, not `name=`.
- The interpreter scatters the masked lanes of a store too. Therefore masks are
  not given as such: a lane is masked where its index lies beyond the end of
  the axis, and the interpreter drops those.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

warnings.filterwarnings(
  "ignore",
  "The Pallas Triton backend is deprecated",
  category=DeprecationWarning,
)

# Matrix products in Triton have at least 16 rows, columns and summands.
LEAST_TILE = 16
LOG2_E = math.log2(math.e)
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def pallas_call(
  kernel: Callable,
  *,
  name: str,
  grid: Sequence[int],
  out_shape,
  flops: int,
  bytes_accessed: int,
  transcendentals: int,
  num_warps: int,
  num_stages: int,
  interpret: bool,
) -> Callable:
  """Returns a function of arrays that runs `kernel` on a grid of programs.

  Args:
    kernel: function of one reference for each array and each result. Arguments
      that are None come in as None.
    name: name of the kernel in a profile.
    grid: at most three numbers of programs; the first varies fastest.
    out_shape: a tree of `jax.ShapeDtypeStruct`.
    flops: floating-point operations of all programs together.
    bytes_accessed: bytes they exchange with memory.
    transcendentals: exponentials and the like that they evaluate.
    num_warps: groups of 32 threads in a program.
    num_stages: depth of the pipeline that loads of a loop are put in.
    interpret: whether Pallas's interpreter runs the kernel, on any machine.
  """

  @functools.wraps(kernel, assigned=(), updated=())
  def named(*references):
    return kernel(*references)

  named.__name__ = named.__qualname__ = name
  return pl.pallas_call(
    named,
    grid=tuple(grid),
    out_shape=out_shape,
    name=name,
    interpret=interpret,
    compiler_params=pltriton.CompilerParams(
      num_warps=num_warps, num_stages=num_stages
    ),
    cost_estimate=pl.CostEstimate(
      flops=int(flops),
      bytes_accessed=int(bytes_accessed),
      transcendentals=int(transcendentals),
    ),
  )


def load(reference, index: Sequence, *, tails: Sequence[int] = (), other=0):
  """Returns the elements of an array at `index`.

  Args:
    reference: reference to a whole array.
    index: for each axis a scalar or an array of integers; they broadcast
      against each other.
    tails: axes along which the index may lie beyond the end.
    other: the value beyond the end.
  """
  index = _arrays(index)
  mask = _inside(reference, index, tails)
  return pltriton.load(
    reference.at[index],
    mask=mask,
    other=None if mask is None else jnp.asarray(other, reference.dtype),
  )


def store(reference, index: Sequence, value, *, tails: Sequence[int] = ()):
  """Writes `value`, in the dtype of the array, to its elements at `index`.

  Arguments are those of `load`; what lies beyond the end is not written.
  """
  index = _arrays(index)
  pltriton.store(
    reference.at[index],
    value.astype(reference.dtype),
    mask=_inside(reference, index, tails),
  )


def dot(
  a,
  b,
  *,
  transpose_a: bool = False,
  transpose_b: bool = False,
  full: bool = True,
):
  """Returns the matrix product a b, accumulated in float32.

  Args:
    a: matrix in the dtype of `b`.
    b: matrix.
    transpose_a: whether `a` is given transposed.
    transpose_b: whether `b` is given transposed.
    full: whether float32 is multiplied in full precision, without the matrix
      unit, instead of with the 10 bits of TF32.
  """
  return lax.dot_general(
    a,
    b,
    (((0 if transpose_a else 1,), (1 if transpose_b else 0,)), ((), ())),
    precision=lax.Precision.HIGHEST
    if full and a.dtype == jnp.float32
    else lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )


def exp(x):
  """Returns e^x by the GPU's own 2^x and one multiplication."""
  return jnp.exp2(x * LOG2_E)


def tile_size(length: int) -> int:
  """Returns the least size of a tile that holds `length` elements."""
  return max(LEAST_TILE, 1 << (length - 1).bit_length())


def pieces(dim: int) -> list[tuple[int, int]]:
  """Cuts channels into tiles: (start, size) of one, or of two if smaller.

  The channels of the last tile may go on beyond the end.
  """
  whole = tile_size(dim)
  first = whole // 2
  if first < LEAST_TILE or first + tile_size(dim - first) >= whole:
    return [(0, whole)]
  return [(0, first), (first, tile_size(dim - first))]


def divide(x, y: int):
  """Returns quotient and remainder of integers that are not negative."""
  y = jnp.full_like(x, y)
  return lax.div(x, y), lax.rem(x, y)


def tail(axis: int, length: int, tile: int) -> tuple[int, ...]:
  """Returns `tails` for an axis of `length` that is cut into tiles."""
  return () if length % tile == 0 else (axis,)


def unsupported_dtypes(**arrays: jax.Array) -> str | None:
  """Says why the dtypes of arrays do not suit a kernel, or returns None."""
  dtypes = {name: array.dtype for name, array in arrays.items()}
  if len(set(dtypes.values())) > 1:
    listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
    return f"the kernel needs one dtype, not {listed}"
  name, dtype = next(iter(dtypes.items()))
  if dtype not in DTYPES:
    return (
      f"{name} has dtype {dtype}; the kernel takes "
      f"{', '.join(jnp.dtype(d).name for d in DTYPES)}"
    )
  return None


def nbytes(*arrays) -> int:
  """Returns the bytes of arrays, or of what has a shape and a dtype."""
  return sum(
    math.prod(array.shape) * jnp.dtype(array.dtype).itemsize
    for array in jax.tree.leaves(arrays)
  )


def _arrays(index):
  # Where a kernel branches, the interpreter does not take Python's integers.
  return tuple(jnp.asarray(i, jnp.int32) for i in index)


def _inside(reference, index, tails):
  mask = None
  for axis in tails:
    inside = index[axis] < reference.shape[axis]
    mask = inside if mask is None else mask & inside
  if mask is None:
    return None
  return jnp.broadcast_to(
    mask, jnp.broadcast_shapes(*(jnp.shape(i) for i in index))
  )
