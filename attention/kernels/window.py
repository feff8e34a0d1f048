"""Block and grid attention of MaxViT on TPUs.

The partition into windows is part of how the kernel reads memory: it streams
strips (`window_plan`) as they lie in memory and cuts windows out of them in
VMEM. Nothing but q, k, v, the output and their
gradients passes through HBM, and the gradients come from q, k and v alone.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from attention.kernels import dispatch
from attention.kernels.tpu import LANES, SUBLANES, unsupported_arrays
from attention.kernels.window_backward import backward
from attention.kernels.window_forward import forward
from attention.kernels.window_plan import VMEM_AIM, VMEM_LIMIT, Plan


def unsupported(q, k, v, bias, *, window_size: int) -> str | None:
  """Says why the kernel cannot take these arguments, or returns None.

  Arguments are those of `window_attention`.
  """
  if v.shape[-1] != q.shape[-1]:
    return (
      f"v has heads of dimension {v.shape[-1]}; the kernel needs the "
      f"{q.shape[-1]} of q"
    )
  reason = unsupported_arrays(q, k, v)
  if reason is not None:
    return reason
  plan = _plan(q, bias, window_size, False, 1.0, False)
  need = dataclasses.replace(plan, direction="backward").vmem_bytes()
  if need > VMEM_LIMIT:
    return (
      f"a strip of {window_size} rows of an image of shape {q.shape[1:]} needs "
      f"{need / 2**20:.0f} MiB of VMEM; the kernel has {VMEM_LIMIT / 2**20:.0f}"
    )
  return None


def window_attention(
  q,
  k,
  v,
  bias,
  *,
  window_size: int,
  grid: bool,
  scale: float | None = None,
  interpret: bool = False,
):
  """Returns the attention within windows, as `attention.windows` defines it.

  Args:
    q: queries of the image [batch, height, width, heads, dim].
    k: keys, like `q`.
    v: values, like `q`.
    bias: [heads, tokens, tokens] or None.
    window_size: side of a window; it divides height and width.
    grid: whether windows are grids of far tokens instead of blocks.
    scale: factor of the scores; dim ** -0.5 if None.
    interpret: whether Pallas's interpreter runs the kernel.

  Returns:
    [batch, height, width, heads, dim] in the dtype of `q`. Gradients to all
    four arrays are the same at every run.
  """
  plan = _plan(q, bias, window_size, grid, scale, interpret)
  plan = dataclasses.replace(plan, batch_in=_batch_in(plan))
  # Where the batch goes; XLA keeps such images with it there.
  axis = {"lanes": -1, "rows": -2}.get(plan.batch_in)
  if axis is None:
    views = (x.reshape(plan.image_shape) for x in (q, k, v))
    return _attention(plan, *views, bias).reshape(q.shape)
  views = (
    jnp.moveaxis(x.reshape(plan.split_shape), 0, axis) for x in (q, k, v)
  )
  out = jnp.moveaxis(_attention(plan, *views, bias), axis, 0)
  return out.reshape(q.shape)


def _batch_in(plan: Plan) -> str:
  """Says where XLA keeps the batch of such images, as `Plan.batch_in` does.

  It is in lanes where it fills them all, and else in rows where it fills tiles
  of them and rows of the image do not. The kernel for lanes needs more VMEM
  than a TPU v4 has.
  """
  small = dispatch.chip()[1].startswith(("TPU v2", "TPU v3", "TPU v4"))
  if (
    not small
    and plan.batch % LANES == 0
    and LANES % plan.dim == 0
    and plan.dim % 16 == 0
    and _vmem_bytes(plan, "lanes") <= VMEM_LIMIT
  ):
    return "lanes"
  images = dataclasses.replace(plan, batch_in="rows").least_images
  if (
    plan.batch % images == 0
    and plan.width % SUBLANES
    and plan.lanes == LANES
    and _vmem_bytes(plan, "rows") <= (VMEM_AIM if small else VMEM_LIMIT)
  ):
    return "rows"
  return "steps"


def _vmem_bytes(plan: Plan, batch_in: str) -> int:
  plan = dataclasses.replace(plan, batch_in=batch_in, direction="backward")
  return plan.sized().vmem_bytes()


def _plan(q, bias, window_size, grid, scale, interpret) -> Plan:
  batch, height, width, heads, dim = q.shape
  return Plan(
    batch=batch,
    height=height,
    width=width,
    heads=heads,
    dim=dim,
    side=window_size,
    grid=grid,
    scale=float(dim**-0.5 if scale is None else scale),
    dtype=jnp.dtype(q.dtype).name,
    has_bias=bias is not None,
    direction="forward",
    interpret=interpret,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan, q, k, v, bias):
  return forward(plan.sized(), q, k, v, bias)


def _attention_forward(plan, q, k, v, bias):
  return forward(plan.sized(), q, k, v, bias), (q, k, v, bias)


def _attention_backward(plan, residuals, out_bar):
  q, k, v, bias = residuals
  plan = dataclasses.replace(plan, direction="backward").sized()
  *bars, bias_bar = backward(plan, q, k, v, bias, out_bar)
  if bias is not None:
    bias_bar = bias_bar.astype(bias.dtype)
  return *bars, bias_bar


_attention.defvjp(_attention_forward, _attention_backward)
