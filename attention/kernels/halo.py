"""Halo attention on TPUs.

The kernel reads each image of keys and values once and cuts the overlapping
windows out of it in VMEM, with their zero padding; scores of positions are
products with the queries there. Nothing but q, k, v, the output, a log-sum-exp
for each query and the gradients passes through HBM.
"""

import functools

import jax
import jax.numpy as jnp

from attention.kernels import halo_call
from attention.kernels.halo_backward import backward
from attention.kernels.halo_forward import forward
from attention.kernels.halo_plan import Plan, pack_positions, unpack_positions
from attention.kernels.tpu import unsupported_arrays


def unsupported(
  q,
  k,
  v,
  *,
  block_size: int,
  halo_size: int,
  stride: int,
  scale: float,
  mask_padding: bool,
) -> str | None:
  """Says why the kernel cannot take these arguments, or returns None.

  Arguments are those of `halo_attention`.
  """
  reason = unsupported_arrays(q, k, v)
  if reason is not None:
    return reason
  if scale == 0:
    return "scale is 0; the kernel needs another"
  plan = _plan(q, k, v, block_size, halo_size, stride, scale, mask_padding)
  need, limit = plan.vmem_bytes("backward"), halo_call.vmem_capacity() * 7 // 8
  if need > limit:
    return (
      f"an image of shape {k.shape[1:]} with blocks of {block_size} and a halo "
      f"of {halo_size} needs {need / 2**20:.0f} MiB of VMEM; the kernel has "
      f"{limit / 2**20:.0f}"
    )
  return None


def halo_attention(
  q,
  k,
  v,
  position_height,
  position_width,
  *,
  block_size: int,
  halo_size: int,
  stride: int,
  scale: float,
  mask_padding: bool,
  interpret: bool = False,
):
  """Returns halo attention as `attention.halo` defines it.

  Args:
    q: queries [batch, height / stride, width / stride, heads, dim].
    k: keys of the image [batch, height, width, heads, dim].
    v: values [batch, height, width, heads, v_dim].
    position_height: what a query's score with a key's row is the product with,
      [block / stride, window, dim]: a row y of a block by a row i of a window,
      functions of i - y. The gradient of all that are equal is at one of them.
    position_width: the same for columns.
    block_size: side of a block of the image.
    halo_size: tokens a window has beyond its block, on each side.
    stride: tokens of the image for each query, along each axis.
    scale: factor of the scores of contents.
    mask_padding: whether keys beyond the edge are left out.
    interpret: whether Pallas's interpreter runs the kernel.

  Returns:
    [batch, height / stride, width / stride, heads, v_dim] in the dtype of `q`.
    Gradients to all five arrays are the same at every run.
  """
  plan = _plan(
    q, k, v, block_size, halo_size, stride, scale, mask_padding, interpret
  )
  out = _attention(
    plan,
    q.reshape(plan.query_shape),
    k.reshape(plan.key_shape),
    v.reshape(plan.value_shape),
    position_height,
    position_width,
  )
  return out.reshape(*q.shape[:-1], v.shape[-1])


def _plan(
  q, k, v, block_size, halo_size, stride, scale, mask_padding, interpret=False
) -> Plan:
  batch, height, width, heads, dim = k.shape
  return Plan(
    batch=batch,
    height=height,
    width=width,
    heads=heads,
    dim=dim,
    v_dim=v.shape[-1],
    block=block_size,
    halo=halo_size,
    stride=stride,
    scale=float(scale),
    mask_padding=mask_padding,
    dtype=jnp.dtype(q.dtype).name,
    interpret=interpret,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan, q, k, v, position_height, position_width):
  positions = pack_positions(plan, position_height, position_width)
  return forward(plan, q, k, v, positions)[0]


def _attention_forward(plan, q, k, v, position_height, position_width):
  positions = pack_positions(plan, position_height, position_width)
  out, sums = forward(plan, q, k, v, positions)
  return out, (q, k, v, positions, sums)


def _attention_backward(plan, residuals, out_bar):
  *bars, positions_bar = backward(plan, *residuals, out_bar)
  return *bars, *unpack_positions(plan, positions_bar)


_attention.defvjp(_attention_forward, _attention_backward)
