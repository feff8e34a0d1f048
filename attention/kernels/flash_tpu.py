"""Flash attention on TPU: the kernels that `attention.kernels.flash` calls."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from attention.kernels import flash_tpu_tiles as tiles
from attention.kernels.flash_plan import LEAST, MASKED, Plan
from attention.kernels.flash_tpu_backward import backward
from attention.kernels.flash_tpu_grid import Arrays, Grid
from attention.kernels.tpu import LANES, Blocked, round_up
from attention.mask_base import Mask

__all__ = ["LAYOUT", "backward", "block_sizes", "forward", "unsupported"]

Shaped = Array | jax.ShapeDtypeStruct

# How arrays come: Mosaic's blocks are of the last two axes.
LAYOUT = "bhnd"
# Kernels keep the list of tiles in scalar memory, 4 bytes an entry.
MAX_LISTED_TILES = 180_000
# Side of a tile of scores: large enough that a step's products take longer than
# to fetch its keys and values and to start it.
BLOCK = 512
# What the number of keys of a tile is a multiple of.
LEAST_KEYS = LANES
# Few queries (`flash_few`): keys of all heads lie side by side. As many at a
# time as take longer to fetch than a step to start, a MiB of bfloat16, and so
# many rows of queries that the matrix unit still waits for the keys.
HEADS_BESIDE = True
FEW_COLUMNS = 4096
MOST_FEW_ROWS = 256


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
  columns = mask.most_tiles(block_k) or -(-k.shape[1] // block_k)
  tiles = -(-q.shape[1] // block_q) * columns
  if tiles > MAX_LISTED_TILES:
    return (
      f"the mask has {tiles} tiles of {block_q} x {block_k}; the list holds "
      f"{MAX_LISTED_TILES}"
    )
  return None


def block_sizes(q: Shaped, k: Shaped, mask: Mask | None) -> tuple[int, int]:
  """Returns the sides of a tile: BLOCK, less for short or fine calls."""
  sizes = (
    # Queries lie along sublanes, 16 rows in a bfloat16 tile; keys also along
    # the lanes of scores.
    min(BLOCK, round_up(q.shape[1], 16)),
    min(BLOCK, round_up(k.shape[1], LANES)),
  )
  multiples = (0, 0) if mask is None else mask.tile_multiples()
  return tuple(
    math.gcd(BLOCK, multiple) if multiple else size
    for size, multiple in zip(sizes, multiples, strict=True)
  )


def few_tokens(q: Shaped, k: Shaped) -> int:
  """Returns the tokens in a tile of keys for few queries."""
  del q
  most = max(FEW_COLUMNS // k.shape[2] // LANES, 1) * LANES
  return min(most, round_up(k.shape[1], LANES))


def few_rows(rows: int) -> int:
  """Returns the rows of a tile that holds so many."""
  return round_up(rows, 16)


def few_parts(heads: int, tiles: int) -> int:
  """Returns in how many parts keys are read: a core reads at full speed."""
  del heads, tiles
  return 1


def forward(
  plan: Plan,
  q: Array,
  k: Array,
  v: Array,
  operands: Sequence[Array],
  indices: tuple[Array, ...],
  lists: Sequence[Array],
) -> tuple[Array, Array]:
  """Returns the output like `q` but as wide as `v`, and the log-sum-exp.

  Args:
    plan: what is known before the call.
    q: [batch, heads, q_len, dim], q_len a multiple of the block.
    k: [batch, k_heads, kv_len, dim].
    v: [batch, v_heads, kv_len, v_dim].
    operands: the arrays of the modifications and of the mask.
    indices: the numbers of the batch elements and of the heads, and where this
      is a part of a sequence, the positions of the first query and key, [2].
    lists: tiles of each row and of each column, or nothing.
  """
  grid = Grid(plan, q, k, v, lists, by_rows=True)
  width = v.shape[-1]
  out = jax.ShapeDtypeStruct((*q.shape[:3], width), q.dtype)
  lse = jax.ShapeDtypeStruct((*q.shape[:2], 1, q.shape[2]), jnp.float32)
  results = grid.call(
    _forward_kernel,
    "flash_forward",
    indices,
    Arrays(q, k, v, None, None, None, operands),
    _Outputs(
      Blocked(out, grid.q_spec(width)), Blocked(lse, grid.statistic_spec())
    ),
    _Scratch(
      most=(plan.block_q, LANES),
      total=(plan.block_q, LANES),
      out=(plan.block_q, width),
    ),
    products=(q.shape[-1], width),
  )
  return results.out, results.lse[:, :, 0]


class _Outputs(NamedTuple):
  """[block_q, v_dim], and the log-sum-exp as a row [1, block_q]."""

  out: Any
  lse: Any


class _Scratch(NamedTuple):
  """What goes on along the tiles of a row of them.

  Attributes:
    most: the largest score so far, the same in all lanes [block_q, LANES].
    total: the sum of exp(score - most) so far, likewise.
    out: the sum of exp(score - most) v so far, [block_q, v_dim].
  """

  most: Any
  total: Any
  out: Any


def _forward_kernel(grid, scalars, inputs, outputs, scratch):
  plan = grid.plan
  step, last = pl.program_id(3), grid.size[3] - 1

  @pl.when(step == 0)
  def _():
    # Not -inf: the difference to a row's first maximum must be a number.
    scratch.most[...] = jnp.full(scratch.most.shape, LEAST, jnp.float32)
    scratch.total[...] = jnp.zeros(scratch.total.shape, jnp.float32)
    scratch.out[...] = jnp.zeros(scratch.out.shape, jnp.float32)

  def process(tile, rows, masked):
    values = grid.values(inputs.operands, rows)
    v = inputs.v[...]
    if plan.weigh == "ones":
      score = jnp.zeros((grid.part, plan.block_k), jnp.float32)
    else:
      # [part of block_q, block_k]
      score = tiles.scaled(plan, inputs.q[rows, :], inputs.k[...])
      score = plan.modified(score, tile, values)
    visible = plan.visible(tile, values) if masked else None
    if masked and plan.raw:
      v = tiles.seen_only(visible, v)
    if plan.weigh != "softmax":
      weights = (
        jax.nn.sigmoid(score)
        if plan.weigh == "sigmoid"
        else jnp.ones_like(score)
      )
      if masked:
        weights = jnp.where(visible, weights, 0.0)
      scratch.out[rows, :] += tiles.product(plan, weights, v)
      return
    if masked:
      # After the modifications, so that whatever they make of a masked score
      # is dropped. Below LEAST, so that it weighs nothing even in a row that
      # has seen no key yet.
      score = jnp.where(visible, score, MASKED)
    before = scratch.most[rows, :]
    most = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
    weights = jnp.exp(score - tiles.wide(most, plan.block_k))
    # What was summed with the maximum before is worth less by this.
    kept = jnp.exp(before - most)
    scratch.most[rows, :] = most
    scratch.total[rows, :] = kept * scratch.total[rows, :] + jnp.sum(
      weights, axis=1, keepdims=True
    )
    scratch.out[rows, :] = tiles.wide(kept, inputs.v.shape[-1]) * scratch.out[
      rows, :
    ] + tiles.product(plan, weights, v)

  grid.on_tile(scalars, process)

  @pl.when(step == last)
  def _():
    if plan.weigh != "softmax":
      outputs.out[...] = scratch.out[...].astype(outputs.out.dtype)
      outputs.lse[...] = jnp.zeros(outputs.lse.shape, jnp.float32)
      return
    total = scratch.total[...]
    # A row that saw no key: its sum of values is zero as well.
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    out = scratch.out[...] / tiles.wide(total, inputs.v.shape[-1])
    outputs.out[...] = out.astype(outputs.out.dtype)
    lse = jnp.where(empty, -jnp.inf, scratch.most[...] + jnp.log(total))
    # Rows of statistics are stored as rows: [block_q, lanes] -> [1, block_q]
    outputs.lse[...] = lse.T[:1]
