"""Depthwise convolution that is fast on the CPU and on TPUs too.

XLA's grouped convolution is what GPUs want. On the CPU it is some fifty times
slower than a sum of shifted products, and so is the gradient that autodiff
makes of such a sum; both are written out here. TPUs have a kernel.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from attention.kernels import dispatch
from models import depthwise_tpu


def depthwise_convolution(
  x: jax.Array,
  kernel: jax.Array,
  stride: int = 1,
  implementation: str = "xla",
) -> jax.Array:
  """Convolves each channel with a filter of its own, TensorFlow's SAME padding.

  Args:
    x: [batch, height, width, channels].
    kernel: [kernel_height, kernel_width, 1, channels].
    stride: step of the window in both directions.
    implementation: see `attention.kernels.dispatch`; there is a kernel for
      TPUs, at stride 1.

  Returns:
    [batch, ceil(height / stride), ceil(width / stride), channels] in the dtype
    of `x`. On the CPU and by the kernel products are summed in float32.

  Raises:
    ValueError: if the shape of `kernel` does not fit, or the implementation
      cannot take the arguments.
  """
  if kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
    raise ValueError(
      f"kernel has shape {kernel.shape}; images of shape {x.shape} need "
      f"[kernel_height, kernel_width, 1, {x.shape[-1]}]"
    )
  target = dispatch.choose(
    implementation,
    {"tpu": lambda: depthwise_tpu.unsupported(x, kernel, stride)},
  )
  if target is None:
    return _of_xla(x, kernel, stride)
  # Channels are split over devices as heads are.
  return dispatch.per_device(
    functools.partial(depthwise_tpu.convolve, interpret=target.interpret),
    (x, kernel),
    ("byxh", "yxoh"),
    "byxh",
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _of_xla(x, kernel, stride):
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_shifted_products, stride=stride),
    default=functools.partial(_grouped_convolution, stride=stride),
  )


def _forward(x, kernel, stride):
  return _of_xla(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, g):
  return lax.platform_dependent(
    *residuals,
    g,
    cpu=functools.partial(_shifted_products_vjp, stride=stride),
    default=functools.partial(_grouped_convolution_vjp, stride=stride),
  )


_of_xla.defvjp(_forward, _backward)


def _grouped_convolution(x, kernel, *, stride):
  return lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    window_strides=(stride, stride),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def _grouped_convolution_vjp(x, kernel, g, *, stride):
  convolve = functools.partial(_grouped_convolution, stride=stride)
  return jax.vjp(convolve, x, kernel)[1](g)


def _shifted_products(x, kernel, *, stride):
  x_pad = jnp.pad(x, _pads(x.shape, kernel.shape, stride))
  out = _correlate(x_pad, kernel, stride, _output_sizes(x.shape, stride))
  return out.astype(x.dtype)


def _shifted_products_vjp(x, kernel, g, *, stride):
  pads = _pads(x.shape, kernel.shape, stride)
  dx = _input_gradient(x, kernel, g, stride, pads)
  dkernel = _kernel_gradient(jnp.pad(x, pads), kernel, g, stride)
  return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


def _correlate(x_pad, kernel, stride, sizes):
  """Sums the images shifted by each offset, times the kernel at that offset."""
  height, width = ((size - 1) * stride + 1 for size in sizes)
  out = 0.0
  for i, j in _offsets(kernel):
    shifted = x_pad[:, i : i + height : stride, j : j + width : stride]
    # Float32 factors, so that bfloat16 images are summed in float32.
    out += shifted * kernel[i, j].astype(jnp.float32)[None, None]
  return out


def _input_gradient(x, kernel, g, stride, pads):
  """Correlates the spread-out gradient with the flipped kernel."""
  borders = [(0, 0, 0)]
  for axis in (1, 2):
    before = kernel.shape[axis - 1] - 1 - pads[axis][0]
    spread = (g.shape[axis] - 1) * stride + 1
    after = x.shape[axis] + kernel.shape[axis - 1] - 1 - before - spread
    borders.append((before, after, stride - 1))
  spread = lax.pad(g, jnp.zeros((), g.dtype), [*borders, (0, 0, 0)])
  return _correlate(spread, kernel[::-1, ::-1], 1, x.shape[1:3])


def _kernel_gradient(x_pad, kernel, g, stride):
  """Sums over the rows in a loop: XLA's CPU reductions are slow here."""
  width = (g.shape[2] - 1) * stride + 1

  def add_row(total, row):
    lines = lax.dynamic_slice_in_dim(
      x_pad, row * stride, kernel.shape[0], axis=1
    )
    g_row = g[:, row].astype(jnp.float32)
    taps = [
      (lines[:, i, j : j + width : stride] * g_row).sum((0, 1))
      for i, j in _offsets(kernel)
    ]
    return total + jnp.stack(taps).reshape(kernel.shape), None

  total = jnp.zeros(kernel.shape, jnp.float32)
  return lax.scan(add_row, total, jnp.arange(g.shape[1]))[0]


def _offsets(kernel):
  height, width = kernel.shape[:2]
  return [(i, j) for i in range(height) for j in range(width)]


def _output_sizes(shape, stride):
  return [math.ceil(size / stride) for size in shape[1:3]]


def _pads(shape, kernel_shape, stride):
  """Returns TensorFlow's SAME padding: the odd pixel goes after."""
  pads = lax.padtype_to_pads(
    shape[1:3], kernel_shape[:2], (stride, stride), "SAME"
  )
  return [(0, 0), *pads, (0, 0)]
