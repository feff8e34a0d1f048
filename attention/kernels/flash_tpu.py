"""Flash attention on TPU: the kernels that `attention.kernels.flash` calls."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attention.kernels.flash_plan import LEAST, MASKED, Plan
from attention.kernels.flash_tpu_backward import backward
from attention.kernels.flash_tpu_grid import (
  LANES,
  Grid,
  product,
  scaled,
  steps,
  wide,
)
from attention.mask_base import Mask

__all__ = ["LAYOUT", "backward", "block_sizes", "forward", "unsupported"]

Shaped = Array | jax.ShapeDtypeStruct

# How arrays come.
LAYOUT = "bhnd"
# Kernels keep the list of tiles in scalar memory, 4 bytes an entry.
MAX_LISTED_TILES = 180_000
# Side of a tile of scores.
BLOCK = 512


def unsupported(
  q: Shaped, k: Shaped, v: Shaped, mask: Mask | None
) -> str | None:
  """Returns why the kernels do not take the arguments, or None if they do."""
  del v
  if mask is None:
    return None
  block_q, block_k = block_sizes(q, k, mask)
  if block_q % 8 or block_k % LANES:
    return (
      f"tiles of {block_q} x {block_k}, which the mask asks for, are not "
      "multiples of 8 x 128"
    )
  tiles = -(-q.shape[1] // block_q) * -(-k.shape[1] // block_k)
  if tiles > MAX_LISTED_TILES:
    return (
      f"the mask has {tiles} tiles of {block_q} x {block_k}; the list holds "
      f"{MAX_LISTED_TILES}"
    )
  return None


def block_sizes(q: Shaped, k: Shaped, mask: Mask | None) -> tuple[int, int]:
  """Returns the sides of a tile: BLOCK, less for short or fine calls."""
  sizes = (
    min(BLOCK, -(-q.shape[1] // 16) * 16),
    min(BLOCK, -(-k.shape[1] // LANES) * LANES),
  )
  multiples = (0, 0) if mask is None else mask.tile_multiples()
  return tuple(
    math.gcd(BLOCK, multiple) if multiple else size
    for size, multiple in zip(sizes, multiples, strict=True)
  )


def forward(
  plan: Plan,
  q: Array,
  k: Array,
  v: Array,
  operands: Sequence[Array],
  indices: tuple[Array, Array],
  lists: Sequence[Array],
) -> tuple[Array, Array]:
  """Returns the output like `q` but as wide as `v`, and the log-sum-exp.

  Args:
    plan: what is known before the call.
    q: [batch, heads, q_len, dim], q_len a multiple of the block.
    k: [batch, k_heads, kv_len, dim].
    v: [batch, v_heads, kv_len, v_dim].
    operands: the arrays of the modifications and of the mask.
    indices: the numbers of the batch elements and of the heads.
    lists: tiles of each row and of each column, or nothing.
  """
  grid = Grid(plan, q, k, v, lists, by_rows=True)
  width = v.shape[-1]
  out, lse = grid.call(
    _forward_kernel,
    "flash_forward",
    indices,
    [grid.q_spec(q), grid.k_spec(k), grid.k_spec(v)],
    [q, k, v],
    operands,
    [grid.row_spec(width), grid.statistic_spec()],
    [
      jax.ShapeDtypeStruct((*q.shape[:3], width), q.dtype),
      jax.ShapeDtypeStruct((*q.shape[:2], 1, q.shape[2]), jnp.float32),
    ],
    [
      pltpu.VMEM((plan.block_q, LANES), jnp.float32),
      pltpu.VMEM((plan.block_q, LANES), jnp.float32),
      pltpu.VMEM((plan.block_q, width), jnp.float32),
    ],
    products=(q.shape[-1], width),
  )
  return out, lse[:, :, 0]


@steps
def _forward_kernel(grid, scalars, arrays, operands, outputs, scratch):
  plan = grid.plan
  q_ref, k_ref, v_ref = arrays
  out_ref, lse_ref = outputs
  most_ref, sum_ref, out_sum_ref = scratch
  step, last = pl.program_id(3), grid.size[3] - 1

  @pl.when(step == 0)
  def _():
    most_ref[...] = jnp.full(most_ref.shape, LEAST, jnp.float32)
    sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
    out_sum_ref[...] = jnp.zeros(out_sum_ref.shape, jnp.float32)

  def process(tile, rows, masked):
    values = grid.values(operands, rows)
    if plan.weigh == "ones":
      score = jnp.zeros((grid.part, plan.block_k), jnp.float32)
    else:
      score = scaled(plan, q_ref[rows, :], k_ref[...])
      score = plan.modified(score, tile, values)
    visible = plan.visible(tile, values) if masked else None
    if plan.weigh != "softmax":
      weights = (
        jax.nn.sigmoid(score)
        if plan.weigh == "sigmoid"
        else jnp.ones_like(score)
      )
      if masked:
        weights = jnp.where(visible, weights, 0.0)
      out_sum_ref[rows, :] += product(plan, weights, v_ref[...])
      return
    if masked:
      score = jnp.where(visible, score, MASKED)
    before = most_ref[rows, :]
    most = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
    weights = jnp.exp(score - wide(most, plan.block_k))
    kept = jnp.exp(before - most)
    most_ref[rows, :] = most
    sum_ref[rows, :] = kept * sum_ref[rows, :] + jnp.sum(
      weights, axis=1, keepdims=True
    )
    out_sum_ref[rows, :] = wide(kept, v_ref.shape[-1]) * out_sum_ref[
      rows, :
    ] + product(plan, weights, v_ref[...])

  grid.on_tile(scalars, process)

  @pl.when(step == last)
  def _():
    if plan.weigh != "softmax":
      out_ref[...] = out_sum_ref[...].astype(out_ref.dtype)
      lse_ref[...] = jnp.zeros(lse_ref.shape, jnp.float32)
      return
    total = sum_ref[...]
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    out_ref[...] = (out_sum_ref[...] / wide(total, v_ref.shape[-1])).astype(
      out_ref.dtype
    )
    lse = jnp.where(empty, -jnp.inf, most_ref[...] + jnp.log(total))
    # Rows of statistics are stored as rows: [block_q, lanes] -> [1, block_q]
    lse_ref[...] = lse.T[:1]
