"""Halo attention of HaloNet on NVIDIA GPUs.

How it is launched; what a program does is in `kernels.halo_gpu_kernels`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from attention.kernels import halo_gpu_kernels as kernels
from attention.kernels import triton

# Programs of one launch, fixed so that sums over them are always in one order.
PROGRAMS = 2048
# Most tokens in a block, keys in a row of a window, and rows of a block times
# channels, as many as fit into registers.
MOST_TOKENS = 128
MOST_FLOAT32_TOKENS = 16
MOST_WINDOW = 32
MOST_ROW_CHANNELS = 256


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Shapes and options, all known before the program runs."""

  batch: int
  height: int
  width: int
  heads: int
  dim: int
  block: int
  halo: int
  stride: int
  scale: float
  mask_padding: bool
  interpret: bool

  @property
  def window(self):
    return self.block + 2 * self.halo

  @property
  def side(self):
    return self.block // self.stride

  @property
  def rows(self):
    return self.height // self.block

  @property
  def columns(self):
    return self.width // self.block

  @property
  def blocks(self):
    return self.batch * self.rows * self.columns

  @property
  def chunk(self):
    """How many blocks a program goes through."""
    return pl.cdiv(self.blocks, max(1, PROGRAMS // self.heads))

  @property
  def offsets(self):
    """Embeddings of a row of the block, in a whole tile."""
    return triton.tile_size(self.window)


def unsupported_gpu(
  q, k, v, *, block_size, halo_size, stride, scale, mask_padding
) -> str | None:
  """Says why the kernel cannot take these arguments, or returns None.

  Arguments are those of `halo_attention_gpu`.
  """
  del scale, mask_padding
  if block_size**2 > MOST_TOKENS:
    return (
      f"block_size is {block_size}; the kernel takes blocks of at most "
      f"{MOST_TOKENS} tokens"
    )
  if block_size + 2 * halo_size > MOST_WINDOW:
    return (
      f"halo_size is {halo_size}; the kernel takes windows of at most "
      f"{MOST_WINDOW} x {MOST_WINDOW} keys"
    )
  if q.dtype == jnp.float32 and block_size**2 > MOST_FLOAT32_TOKENS:
    # Products in full float32 have no matrix unit and fill the registers.
    return (
      f"block_size is {block_size}; the kernel takes float32 blocks of at most "
      f"{MOST_FLOAT32_TOKENS} tokens"
    )
  widest = max(q.shape[-1], v.shape[-1])
  if block_size // stride * triton.tile_size(widest) > MOST_ROW_CHANNELS:
    return (
      f"heads have dimension {widest}; with {block_size // stride} queries in "
      "a row of a block the kernel takes at most "
      f"{MOST_ROW_CHANNELS * stride // block_size}"
    )
  return triton.unsupported_dtypes(q=q, k=k, v=v)


def halo_attention_gpu(
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

  Arguments and result are those of `attention.kernels.halo.halo_attention`.
  """
  batch, height, width, heads, dim = k.shape
  plan = _Plan(
    batch=batch,
    height=height,
    width=width,
    heads=heads,
    dim=dim,
    block=block_size,
    halo=halo_size,
    stride=stride,
    scale=scale,
    mask_padding=mask_padding,
    interpret=interpret,
  )
  tables = tuple(x.astype(q.dtype) for x in (position_height, position_width))
  flat = (x.reshape(batch, -1, heads, x.shape[-1]) for x in (q, k, v))
  return _attention(plan, *flat, tables).reshape(*q.shape[:-1], v.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(plan, q, k, v, tables):
  return _run_forward(plan, q, k, v, tables)[0]


def _attention_forward(plan, q, k, v, tables):
  out, lse = _run_forward(plan, q, k, v, tables)
  return out, (q, k, v, tables, out, lse)


def _attention_backward(plan, residuals, out_bar):
  q, k, v, tables, out, lse = residuals
  delta = jnp.sum(
    out_bar.astype(jnp.float32) * out.astype(jnp.float32), axis=-1
  )
  arrays = (q, k, v, tables, out_bar, lse, delta)
  chunks = pl.cdiv(plan.blocks, plan.chunk)
  # [chunks, heads, side * channels, offsets]
  partial = jax.ShapeDtypeStruct(
    (
      chunks,
      plan.heads,
      plan.side * triton.tile_size(plan.dim),
      plan.offsets,
    ),
    jnp.float32,
  )
  q_bar, partials = _call(
    plan,
    kernels.queries_kernel,
    "halo_attention_backward_queries",
    arrays,
    (jax.ShapeDtypeStruct(q.shape, q.dtype), (partial, partial)),
    products=2 * plan.dim + v.shape[-1],
  )
  k_bar, v_bar = _call(
    plan,
    kernels.keys_kernel,
    "halo_attention_backward_keys",
    arrays,
    [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
    products=2 * plan.dim + 2 * v.shape[-1],
  )
  tables_bar = tuple(
    _table_gradient(plan, x).astype(table.dtype)
    for x, table in zip(partials, tables, strict=True)
  )
  return q_bar, k_bar, v_bar, tables_bar


def _table_gradient(plan, partials):
  sums = partials.sum(axis=(0, 1)).reshape(plan.side, -1, plan.offsets)
  return sums[:, : plan.dim, : plan.window].swapaxes(1, 2)


_attention.defvjp(_attention_forward, _attention_backward)


def _run_forward(plan, q, k, v, tables):
  return _call(
    plan,
    kernels.forward_kernel,
    "halo_attention_forward",
    (q, k, v, tables),
    (
      jax.ShapeDtypeStruct((*q.shape[:3], v.shape[-1]), q.dtype),
      jax.ShapeDtypeStruct(q.shape[:3], jnp.float32),
    ),
    products=plan.dim + v.shape[-1],
  )


def _call(plan, kernel, name, arrays, out_shape, *, products):
  tokens = plan.blocks * plan.heads * triton.tile_size(plan.side**2)
  scores = tokens * pl.cdiv(plan.window**2, kernels.STEP) * kernels.STEP
  # Two products for the scores of positions, each made and spread.
  positions = 4 * plan.offsets * (tokens * plan.side * plan.dim + scores)
  return triton.pallas_call(
    functools.partial(kernel, plan),
    name=name,
    grid=(plan.heads, pl.cdiv(plan.blocks, plan.chunk)),
    out_shape=out_shape,
    flops=2 * scores * products + positions,
    bytes_accessed=triton.nbytes(arrays, out_shape),
    transcendentals=scores,
    num_warps=4 if plan.block**2 <= 64 else 8,
    num_stages=1,
    interpret=plan.interpret,
  )(*arrays)
