"""Depthwise convolution on TPUs: images shifted along sublanes, times filters.

XLA's grouped convolution and the rearranging around it take ten times what the
vector unit needs. Here channels are lanes and columns of the image sublanes. An
image of 128 channels is in VMEM as a whole, in float32 and with borders of
zeros, so that a shift is the place that is read. A loop goes down the rows of
some columns; each row that is read adds to the sums of all the rows that it
touches, which are kept in registers. There are two kernels: one convolves, and
with the flipped filter gives the gradient of the image; the other sums over the
image what each number of the filter was multiplied by.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention.kernels import tpu
from attention.kernels.tpu import LANES, SUBLANES, Blocked

# The most VMEM of a step: an image twice coming and going, and in float32.
VMEM_BYTES = 40 * 2**20
# Columns that are summed at once, two registers of 16-bit numbers, and the rows
# that a turn of a loop takes, so that there is work while others are fetched.
_COLUMNS = 2 * SUBLANES
_UNROLL = 4
# Registers for filter and sums; there are 64.
_LARGEST = 25


class _Inputs(NamedTuple):
  """An image, and a filter or what the gradient of a filter is made with."""

  image: Any
  kernel: Any = None
  out_bar: Any = None


class _Outputs(NamedTuple):
  result: Any


class _Scratch(NamedTuple):
  """The image in float32, with borders of zeros."""

  image: Any


@dataclasses.dataclass(frozen=True)
class Plan:
  """Sizes of a call.

  Attributes:
    shape: [batch, height, width, channels].
    dtype: of the image, by name.
    window: height and width of the filter.
    before: zeros above and to the left of the image.
    interpret: whether Pallas's interpreter runs the kernel.
  """

  shape: tuple[int, int, int, int]
  dtype: str
  window: tuple[int, int]
  before: tuple[int, int]
  interpret: bool = False

  @property
  def taps(self) -> list[tuple[int, int]]:
    """The places of a filter."""
    return [
      (i, j) for i in range(self.window[0]) for j in range(self.window[1])
    ]

  @property
  def lanes(self) -> int:
    return min(self.shape[3], LANES)

  @property
  def left(self) -> int:
    """Columns before the image, whole registers, so that it is aligned."""
    return tpu.round_up(max(self.before[1], 1), SUBLANES)

  @property
  def scratch(self) -> tuple[int, int, int]:
    _, height, width, _ = self.shape
    columns = self.left + width + self.window[1] - 1 - self.before[1]
    return (
      height + self.window[0] - 1,
      tpu.round_up(columns, SUBLANES),
      self.lanes,
    )

  @property
  def vmem_bytes(self) -> int:
    _, height, width, _ = self.shape
    image = height * tpu.round_up(width, 2 * SUBLANES) * LANES
    itemsize = jnp.dtype(self.dtype).itemsize
    return 4 * image * itemsize + 4 * math.prod(self.scratch[:2]) * LANES

  @property
  def flipped(self) -> "Plan":
    """The plan of the gradient of the image."""
    before = tuple(
      size - 1 - at for size, at in zip(self.window, self.before, strict=True)
    )
    return dataclasses.replace(self, before=before)

  def call(self, kernel, name: str, inputs: _Inputs, result) -> jax.Array:
    batch, _, _, channels = self.shape
    return tpu.call(
      functools.partial(kernel, self),
      name,
      # Images are the last axis, as the gradient of a filter sums over them.
      grid=(pl.cdiv(channels, LANES), batch),
      inputs=inputs,
      outputs=_Outputs(result),
      scratch=_Scratch(self.scratch),
      parallel=1,
      vmem_bytes=max(16 * 2**20, self.vmem_bytes * 3 // 2),
      flops=2 * math.prod(self.shape) * len(self.taps),
      transcendentals=0,
      interpret=self.interpret,
    ).result

  def images(self, x) -> Blocked:
    """An image [batch, height, width, channels] and some lanes of it."""
    block = (1, *self.shape[1:3], self.lanes)
    return Blocked(x, pl.BlockSpec(block, lambda c, b: (b, 0, 0, c)))

  def filters(self, x) -> Blocked:
    """A filter [taps, channels], which stays in place from image to image."""
    block = (len(self.taps), self.lanes)
    return Blocked(x, pl.BlockSpec(block, lambda c, b: (0, c)))


def unsupported(x: jax.Array, kernel: jax.Array, stride: int) -> str | None:
  """Says why the kernel cannot take these arguments, or returns None."""
  if stride != 1:
    return f"stride is {stride}; the kernel has stride 1"
  if x.dtype.name not in tpu.DTYPES:
    return f"x is {x.dtype.name}; the kernel has {' and '.join(tpu.DTYPES)}"
  if 0 in x.shape or 0 in kernel.shape:
    return f"x has shape {x.shape}; the kernel needs at least one element"
  if math.prod(kernel.shape[:2]) > _LARGEST:
    return (
      f"kernel has shape {kernel.shape}; the kernel has filters of at most "
      f"{_LARGEST} numbers"
    )
  need = make_plan(x, kernel).vmem_bytes
  if need > VMEM_BYTES:
    return (
      f"x has shape {x.shape}; the kernel needs {need:,} bytes of VMEM for an "
      f"image of {LANES} channels, and may use {VMEM_BYTES:,}"
    )
  return None


def make_plan(
  x: jax.Array, kernel: jax.Array, *, interpret: bool = False
) -> Plan:
  """Returns the plan for TensorFlow's SAME padding at stride 1."""
  window = kernel.shape[:2]
  before = tuple((size - 1) // 2 for size in window)
  return Plan(x.shape, x.dtype.name, window, before, interpret)


def convolve(
  x: jax.Array, kernel: jax.Array, *, interpret: bool = False
) -> jax.Array:
  """Returns what `models.depthwise.depthwise_convolution` does at stride 1.

  Args:
    x: [batch, height, width, channels].
    kernel: [kernel_height, kernel_width, 1, channels].
    interpret: whether Pallas's interpreter runs the kernels.
  """
  plan = make_plan(x, kernel, interpret=interpret)
  return _convolve(plan, x, kernel.reshape(-1, kernel.shape[-1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(plan, x, kernel):
  return plan.call(
    _convolve_kernel,
    "depthwise_convolution",
    _Inputs(plan.images(x), plan.filters(kernel.astype(jnp.float32))),
    plan.images(jax.ShapeDtypeStruct(plan.shape, x.dtype)),
  )


def _forward(plan, x, kernel):
  return _convolve(plan, x, kernel), (x, kernel)


def _backward(plan, arrays, out_bar):
  x, kernel = arrays
  sums = plan.call(
    _filter_kernel,
    "depthwise_convolution_filter",
    _Inputs(plan.images(x), out_bar=plan.images(out_bar)),
    plan.filters(jax.ShapeDtypeStruct(kernel.shape, jnp.float32)),
  )
  x_bar = _convolve(plan.flipped, out_bar, kernel[::-1])
  return x_bar, sums.astype(kernel.dtype)


_convolve.defvjp(_forward, _backward)


def _convolve_kernel(plan, inputs, outputs, scratch):
  _, height, width, _ = plan.shape
  rows, columns = plan.window
  _fill(plan, inputs.image, scratch.image)
  taps = [inputs.kernel[n : n + 1] for n in range(rows * columns)]

  def add(row, start, size, sums):
    """Adds a row of the scratch to the sums of rows - 1 places before it."""
    sums = [*sums, 0.0]
    for j in range(columns):
      line = _line(plan, scratch.image, row, start + j, size)
      for i in range(rows):
        sums[rows - 1 - i] += line * taps[i * columns + j]
    return sums

  for start in range(0, width, _COLUMNS):
    size = min(_COLUMNS, width - start)
    sums = [jnp.zeros((size, plan.lanes), jnp.float32)] * (rows - 1)
    for row in range(rows - 1):
      sums = add(row, start, size, sums)[1:]

    def turn(row, sums, start=start, size=size):
      done, *sums = add(row + rows - 1, start, size, sums)
      at = 0, row, slice(start, start + size)
      outputs.result[at] = done.astype(outputs.result.dtype)
      return sums

    _down(height, turn, sums)


def _filter_kernel(plan, inputs, outputs, scratch):
  _, height, width, _ = plan.shape
  _fill(plan, inputs.image, scratch.image)

  @pl.when(pl.program_id(1) == 0)
  def _():
    outputs.result[...] = jnp.zeros_like(outputs.result)

  for start in range(0, width, _COLUMNS):
    size = min(_COLUMNS, width - start)
    whole = size % SUBLANES == 0

    def turn(row, sums, start=start, size=size, whole=whole):
      at = 0, row, slice(start, start + size)
      bar = inputs.out_bar[at].astype(jnp.float32)
      found = []
      for (i, j), total in zip(plan.taps, sums, strict=True):
        line = _line(plan, scratch.image, row + i, start + j, size) * bar
        if whole:
          line = line.reshape(-1, SUBLANES, plan.lanes).sum(0)
        found.append(total + line)
      return found

    zero = jnp.zeros((SUBLANES if whole else size, plan.lanes), jnp.float32)
    for n, total in enumerate(_down(height, turn, [zero] * len(plan.taps))):
      outputs.result[n : n + 1] += total.sum(0, keepdims=True)


def _line(plan, image, row, column, size):
  """Columns of a row of the scratch, `column` counted from the left border."""
  start = plan.left - plan.before[1] + column
  return image[row, start : start + size]


def _fill(plan, image, scratch):
  """Writes the image in float32, with zeros around it."""
  _, height, width, _ = plan.shape
  above = plan.before[0]
  rows, columns, lanes = plan.scratch
  empty = jnp.zeros((columns, lanes), jnp.float32)
  for row in (*range(above), *range(above + height, rows)):
    scratch[row] = empty
  right = plan.left + width

  def copy(row, nothing):
    to = row + above
    scratch[to, : plan.left] = empty[: plan.left]
    if right < columns:
      scratch[to, right:] = empty[right:]
    scratch[to, plan.left : right] = image[0, row].astype(jnp.float32)
    return nothing

  _down(height, copy, ())


def _down(height, turn, carry):
  """Runs `turn(row, carry)` for all rows, several in a turn of the loop."""
  loops = height // _UNROLL

  def several(i, carry):
    for n in range(_UNROLL):
      carry = turn(i * _UNROLL + n, carry)
    return carry

  if loops > 1:
    carry = lax.fori_loop(0, loops, several, carry)
  for row in range(loops * _UNROLL if loops > 1 else 0, height):
    carry = turn(row, carry)
  return carry
