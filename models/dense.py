"""The product of a dense layer, with a gradient that transposes less.

Passed to Flax's layers as their `dot_general`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from attention.kernels import dispatch


def gathered(kernel: jax.Array) -> jax.Array:
  """Makes a kernel whole that FSDP splits, or its gradient before it is split.

  Left to itself the compiler cuts a product into as many as there are devices,
  and passes parts of the kernel around meanwhile: by its own estimate that
  takes a layer of a language model two to four times as long.

  Args:
    kernel: as it is where the current mesh has no FSDP, or splits kernels for
      tensor parallelism too.
  """
  mesh = jax.sharding.get_abstract_mesh()
  sizes = dict(mesh.shape)
  if sizes.get("fsdp", 1) == 1 or sizes.get("model", 1) > 1:
    return kernel
  if set(mesh.axis_types) != {AxisType.Auto}:
    return kernel
  return lax.with_sharding_constraint(kernel, PartitionSpec())


def dot_general(
  x: jax.Array,
  kernel: jax.Array,
  dimension_numbers: lax.DotDimensionNumbers,
  precision: lax.PrecisionLike = None,
) -> jax.Array:
  """Contracts the last axes of `x` with the first axes of `kernel`.

  The gradient of the kernel contracts two large arrays over the batch, and
  a CPU has to transpose the first of them. Autodiff always puts the gradient
  of the output first, which in a layer that widens is the wider one (and drags
  whatever computed it into a strided loop). Here the narrower one is first:
  the same numbers, a sixth less time for a training step of MaxViT on a CPU.

  Args:
    x: `[..., *inputs]`.
    kernel: `[*inputs, *outputs]`.
    dimension_numbers: as for `jax.lax.dot_general`; no batch axes.
    precision: as for `jax.lax.dot_general`.

  Returns:
    `[..., *outputs]`.
  """
  (x_axes, kernel_axes), batch = dimension_numbers
  n = len(kernel_axes)
  if (
    tuple(batch) != ((), ())
    or tuple(kernel_axes) != tuple(range(n))
    or tuple(x_axes) != tuple(range(x.ndim - n, x.ndim))
  ):
    raise ValueError(
      f"dimension_numbers={dimension_numbers} must contract the last axes of x "
      "with the first axes of the kernel, in order and without batch axes"
    )
  return _dense(x, kernel, n, precision)


def matmul(
  x: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike = None
) -> jax.Array:
  """Is `dot_general` of [..., inputs] and [inputs, outputs]."""
  return _dense(x, kernel, 1, precision)


def image_matmul(
  x: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike = None
) -> jax.Array:
  """Is `matmul` of images, [batch, height, width, inputs].

  Where rows of an image do not fill registers but the batch does, the compiler
  of a TPU keeps images as [height, width, batch, channels]. Around a product it
  may put the batch first, and copy: so here the product is written in that
  order, to which transpositions cost nothing.
  """
  if not _batch_goes_inward(x):
    return matmul(x, kernel, precision)
  out = matmul(x.transpose(1, 2, 0, 3), kernel, precision)
  return out.transpose(2, 0, 1, 3)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds [channels] to images; a TPU sums its gradient by its matrix unit.

  As a sum over [height, width, batch] it takes several times as long as the
  products around it, since each tile of registers is a sum of its own.
  """
  return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _add_bias_forward(x, bias):
  return add_bias(x, bias), None


def _add_bias_backward(_, g):
  axes = tuple(range(g.ndim - 1))
  if dispatch.chip()[0] != "tpu":
    return g, g.sum(axes)
  x = g.transpose(1, 2, 0, 3) if _batch_goes_inward(g) else g
  # Eight rows are the least that the unit takes.
  ones = jnp.ones((*x.shape[:-1], 8), x.dtype)
  return g, lax.dot_general(ones, x, ((axes, axes), ((), ())))[0]


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def _batch_goes_inward(x: jax.Array) -> bool:
  """Says so of images of which each device has a share."""
  return batch_goes_inward(share(x))


def share(x: jax.Array) -> tuple[int, ...]:
  """The shape of what a device has of [batch, ...], all if it cannot divide."""
  mesh = jax.sharding.get_abstract_mesh()
  parts = math.prod(mesh.shape.get(axis, 1) for axis in dispatch.BATCH_AXES)
  each, rest = divmod(len(x), parts)
  return x.shape if rest else (each, *x.shape[1:])


def batch_goes_inward(shape: tuple[int, ...]) -> bool:
  """Says whether the batch of images fills rows of registers, but not lanes.

  And whether the width does not: then it would be in rows.

  Args:
    shape: of the images of one device, [batch, height, width, channels].
  """
  return (
    dispatch.chip()[0] == "tpu"
    and shape[2] % 8 != 0
    and shape[0] % 8 == 0
    and shape[0] % 128 != 0
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x, kernel, n, precision):
  axes = (range(x.ndim - n, x.ndim), range(n))
  return lax.dot_general(x, gathered(kernel), (axes, ((), ())), precision)


def _forward(x, kernel, n, precision):
  return _dense(x, kernel, n, precision), (x, kernel)


def _backward(n, precision, residuals, g):
  x, kernel = residuals
  outputs = kernel.ndim - n
  batch = range(x.ndim - n)
  dx = lax.dot_general(
    g,
    gathered(kernel),
    ((range(g.ndim - outputs, g.ndim), range(n, kernel.ndim)), ((), ())),
    precision,
  )
  over_batch = ((batch, batch), ((), ()))
  if math.prod(kernel.shape[:n]) <= math.prod(kernel.shape[n:]):
    dkernel = lax.dot_general(x, g, over_batch, precision)
  else:
    dkernel = lax.dot_general(g, x, over_batch, precision)
    # [*outputs, *inputs] -> [*inputs, *outputs]
    dkernel = dkernel.transpose(*range(outputs, kernel.ndim), *range(outputs))
  return dx, gathered(dkernel)


_dense.defvjp(_forward, _backward)


@jax.custom_vjp
def to_float32(x: jax.Array, table: jax.Array) -> jax.Array:
  """Returns the products of `x` with the rows of a table, in float32.

  What autodiff makes of a float32 result of bfloat16 factors are products in
  float32, which matrix units take several times as long for. The gradients here
  are products of what has the dtype of the factors, as those of other layers.

  Args:
    x: [..., width].
    table: [rows, width], of the dtype of `x`.

  Returns:
    float32 [..., rows].
  """
  return lax.dot_general(
    x,
    gathered(table),
    (((x.ndim - 1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _to_float32_forward(x, table):
  return to_float32(x, table), (x, table)


def _to_float32_backward(residuals, g):
  x, table = residuals
  g = g.astype(x.dtype)
  batch = range(x.ndim - 1)
  dx = lax.dot_general(g, gathered(table), (((g.ndim - 1,), (0,)), ((), ())))
  dtable = lax.dot_general(g, x, ((batch, batch), ((), ())))
  return dx, gathered(dtable)


to_float32.defvjp(_to_float32_forward, _to_float32_backward)
