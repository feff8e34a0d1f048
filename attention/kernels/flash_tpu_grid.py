"""The grid of the flash kernels on TPU, and the blocks of a step.

Arrays come as [batch, heads, whole tiles, dim]. The grid is (batch, head, tile
of rows, step), and the step takes the next tile of the row from a list in
scalar memory, so that neither time nor memory traffic is spent on empty tiles.

Rows are tiles of queries where `by_rows`, tiles of keys otherwise. Letters: b
and h are batch and head; i and j number the tile of queries and that of keys,
whichever of them the grid calls its row; t is the step along a row.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from attention.kernels import tpu
from attention.kernels.flash_plan import LIST_BASE
from attention.kernels.tpu import Blocked
from attention.mask_base import EMPTY, FULL
from attention.tiles import Tile

# Rows of a tile that are worked on at a time: what a tile of 512 x 512 float32
# scores and their exponentials take, 1 MiB each, is many times the registers.
ROWS = 256
_VMEM_BYTES = 64 * 2**20


class Scalars(NamedTuple):
  """What scalar memory has, whole at every step, also for index maps.

  Attributes:
    batch, heads: numbers of the batch elements and of the heads here, in the
      whole of the call.
    tiles: the list of tiles, flat: scalar memory pads every last axis.
    first: positions of the first query and of the first key here, in the whole
      of the call; None if both are 0.
  """

  batch: Any
  heads: Any
  tiles: Any
  first: Any = None


class Arrays(NamedTuple):
  """The arrays of a call, and in a kernel the references to their blocks.

  Attributes:
    q: [batch, heads, q_len, dim], a block of it [block_q, dim].
    k, v: [batch, few heads, kv_len, dim], blocks [block_k, dim].
    d_out: gradient of the output, like `q` but as wide as `v`.
    lse, delta: statistics of queries [batch, heads, 1, q_len]. A row, as a
      column would take a register of 128 lanes for each 8 numbers; the axis of
      size one is there because blocks need a sublane axis.
    operands: arrays of the score modifications and then of the mask.

  The forward pass has None for `d_out`, `lse` and `delta`.
  """

  q: Any
  k: Any
  v: Any
  d_out: Any
  lse: Any
  delta: Any
  operands: Any


class Grid:
  """The grid of a kernel and the blocks that a step gets of each array."""

  def __init__(self, plan, q, k, v, lists, *, by_rows):
    self.plan = plan
    self.by_rows = by_rows
    self.batch, self.heads, self.q_len, _ = q.shape
    self.kv_len = k.shape[2]
    # Keys may end within a tile.
    tiles = (self.q_len // plan.block_q, -(-self.kv_len // plan.block_k))
    outer, inner = tiles if by_rows else tiles[::-1]
    self.list = lists[0 if by_rows else 1] if lists else None
    steps = inner if self.list is None else self.list.shape[-1]
    self.size = (self.batch, self.heads, outer, steps)

  # Index maps and kernels call these with the step of the grid.

  def entry(self, b, h, row, t, scalars):
    """Returns the entry of the tile list for a step of the grid."""
    batch, heads, rows, steps = self.list.shape
    # A list may be shared by all batch elements, or by all heads.
    b, h = (b if batch > 1 else 0), (h if heads > 1 else 0)
    return scalars.tiles[((b * heads + h) * rows + row) * steps + t]

  def place(self, b, h, row, t, scalars):
    """Returns batch, head, tile of queries and tile of keys of a step."""
    if self.list is not None:
      t = self.entry(b, h, row, t, scalars) // LIST_BASE
    return (b, h, row, t) if self.by_rows else (b, h, t, row)

  def state(self, b, h, row, t, scalars):
    """Returns whether the tile of a step is EMPTY, MIXED or FULL."""
    return self.entry(b, h, row, t, scalars) % LIST_BASE

  def spec(self, block, index):
    """A block whose place is a function of b, h, i and j.

    Pallas fetches a block only when its place changes. The list ends with
    copies of its last tile as EMPTY, so the steps that have nothing to do move
    nothing, and what belongs to the row stays where it is all along.
    """

    def index_map(b, h, row, t, *scalars):
      return index(*self.place(b, h, row, t, Scalars(*scalars)))

    return pl.BlockSpec(block, index_map)

  def q_spec(self, width):
    """What has a row a query: a tile [block_q, width]."""
    block = (None, None, self.plan.block_q, width)
    return self.spec(block, lambda b, h, i, j: (b, h, i, 0))

  def k_spec(self, x):
    """Keys and values [block_k, dim]: query heads share them in groups.

    Neighbouring heads have the same block, which is then not fetched again
    where the row has one tile.
    """
    group = self.heads // x.shape[1]
    block = (None, None, self.plan.block_k, x.shape[-1])
    return self.spec(block, lambda b, h, i, j: (b, h // group, j, 0))

  def per_head_k_spec(self, width):
    """What has a row a key for each head of the queries: [block_k, width]."""
    block = (None, None, self.plan.block_k, width)
    return self.spec(block, lambda b, h, i, j: (b, h, j, 0))

  def statistic_spec(self):
    """A number a query, as a row [1, block_q]."""
    block = (None, None, 1, self.plan.block_q)
    return self.spec(block, lambda b, h, i, j: (b, h, 0, i))

  def inputs(self, arrays: Arrays) -> Arrays:
    """Gives each array its blocks; what a kernel does not take stays None."""
    q, k, v, d_out, lse, delta, operands = arrays
    statistic = self.statistic_spec()
    return Arrays(
      Blocked(q, self.q_spec(q.shape[-1])),
      Blocked(k, self.k_spec(k)),
      Blocked(v, self.k_spec(v)),
      *(
        None if x is None else Blocked(x, spec)
        for x, spec in (
          (d_out, self.q_spec(v.shape[-1])),
          (lse, statistic),
          (delta, statistic),
        )
      ),
      [self.operand(i, x) for i, x in enumerate(operands)],
    )

  def operand(self, number, array) -> Blocked:
    """Gives an operand two inner axes, and blocks that broadcast to a tile.

    "" -> [1, 1], "q" -> [q, 1] or [1, q], "k" -> [1, k] or [k, 1]: a vector
    lies along the axis of the tile that it belongs to. "qk" stays as it is, and
    where keys are rows the kernel turns its block: to turn the array would move
    all of it through HBM.
    """
    axes, inner = self.plan.axes[number], self.plan.inner(number)
    lead = axes[: len(axes) - len(inner)]
    block_q, block_k = self.plan.block_q, self.plan.keys(number)
    # The axis of a tile's rows.
    down = "q" if self.by_rows else "k"
    shape = array.shape[: len(lead)]
    if inner in ("", "q", "k"):
      length = array.shape[-1] if inner else 1
      array = array.reshape(
        *shape, *((length, 1) if inner == down else (1, length))
      )
      side = {"": 1, "q": block_q, "k": block_k}[inner]
      block = (side, 1) if inner == down else (1, side)
    else:
      block = (block_q, block_k)

    def index(b, h, i, j):
      place = {"": 0, "q": i, "k": j}
      where = (
        (i, j)
        if inner == "qk"
        else (place[inner], 0)
        if inner == down
        else (0, place[inner])
      )
      return (*((b, h)["bh".index(axis)] for axis in lead), *where)

    return Blocked(array, self.spec((*([None] * len(lead)), *block), index))

  def call(
    self,
    kernel: Callable,
    name: str,
    indices: Sequence[Array],
    arrays: Arrays,
    outputs: tuple,
    scratch: tuple | None,
    *,
    products: Sequence[int],
  ) -> tuple:
    """Runs `kernel(grid, scalars, inputs, outputs, scratch)` at each step.

    Args:
      kernel: the kernel.
      name: its name in a profile.
      indices: numbers of the batch elements and of the heads, and `first` of
        `Scalars` if that is given.
      arrays: what it reads.
      outputs: as for `tpu.call`.
      scratch: as for `tpu.call`.
      products: depths or widths of the products made of each tile.
    """
    # Without a list nothing reads it, but the kernel has a place for it.
    tiles = (
      jnp.zeros(1, jnp.int32) if self.list is None else self.list.reshape(-1)
    )

    def run(*scalars_and_rest):
      *scalars, inputs, outputs, scratch = scalars_and_rest
      kernel(self, Scalars(*scalars), inputs, outputs, scratch)

    scores = math.prod(self.size) * self.plan.block_q * self.plan.block_k
    return tpu.call(
      run,
      name,
      grid=self.size,
      inputs=self.inputs(arrays),
      outputs=outputs,
      scratch=scratch,
      scalars=(*indices[:2], tiles, *indices[2:]),
      # Only the steps along a row carry anything.
      parallel=3,
      vmem_bytes=_VMEM_BYTES,
      flops=2 * scores * sum(products),
      transcendentals=scores,
      interpret=self.plan.interpret,
    )

  @property
  def part(self) -> int:
    """How many rows of a tile are worked on at a time."""
    down = self.plan.block_q if self.by_rows else self.plan.block_k
    return math.gcd(down, ROWS) if down > ROWS else down

  def on_tile(self, scalars, process):
    """Calls process(tile, rows, masked) for the parts of a tile to be seen.

    A whole tile has more numbers than there are registers. `rows` are those of
    a part, along the first axis of the tile as it lies. The mask is evaluated
    on MIXED tiles only: `process` is compiled twice, once without it.
    """
    step = [pl.program_id(axis) for axis in range(4)]
    b, h, i, j = self.place(*step, scalars)
    block_q, block_k = self.plan.block_q, self.plan.block_k

    def parts(masked):
      def one(number, carry):
        start = number * self.part
        q_start, k_start = i * block_q, j * block_k
        if scalars.first is not None:
          q_start += scalars.first[0]
          k_start += scalars.first[1]
        # Positions along the rows are a column, those across a row.
        q_shape, k_shape = (1, block_q), (1, block_k)
        if self.by_rows:
          q_start, q_shape = q_start + start, (self.part, 1)
        else:
          k_start, k_shape = k_start + start, (self.part, 1)
        tile = Tile(
          scalars.batch[b],
          scalars.heads[h],
          q_start + _iota(q_shape),
          k_start + _iota(k_shape),
        )
        process(
          tile, pl.ds(pl.multiple_of(start, self.part), self.part), masked
        )
        return carry

      down = block_q if self.by_rows else block_k
      jax.lax.fori_loop(0, down // self.part, one, 0)

    if self.list is None:
      parts(masked=False)
      return
    state = self.state(*step, scalars)
    pl.when(state == FULL)(lambda: parts(masked=False))
    # Without a mask on mixed tiles there are none (`mask_base.Blocks`).
    if self.plan.mask is not None:
      pl.when((state != FULL) & (state != EMPTY))(lambda: parts(masked=True))

  def values(self, refs, rows):
    """Returns the operands' values on a part of the current tile.

    [rows, columns] or what broadcasts to it, in the order of the tile's axes.
    """
    down = "q" if self.by_rows else "k"
    values = []
    for number, ref in enumerate(refs):
      inner = self.plan.inner(number)
      if inner == "qk":
        value = ref[rows, :] if self.by_rows else ref[:, rows]
      else:
        value = ref[rows, :] if inner == down else ref[...]
      if self.plan.booleans[number]:
        # Through int32, as there is no comparison of int8.
        value = value.astype(jnp.int32) != 0
      if inner == "qk" and not self.by_rows:
        value = value.T
      values.append(value)
    return values


class TileGrid(Grid):
  """A grid over all tiles, which come together over what an array shares.

  Its axes are (what the array has of batch and heads, row, column, what it
  shares of them), so that gradients of what is shared are summed in place: the
  block of the gradient stays while all that shares it passes. There is no list
  to go by, only the state of each tile: also an empty tile's gradient must be
  written, as zeros.
  """

  def __init__(self, plan, q, k, v, states, axes):
    super().__init__(plan, q, k, v, (), by_rows=True)
    self.list = states
    self.axes = axes
    sizes = {"b": self.batch, "h": self.heads}
    own, shared = 1, 1
    for axis, size in sizes.items():
      own, shared = (
        (own * size, shared) if axis in axes else (own, shared * size)
      )
    rows, columns = self.size[2], self.kv_len // plan.block_k
    self.size = (own, rows, columns, shared)

  def place(self, own, i, j, shared, scalars):
    # `own` and `shared` number pairs of batch and head where they have both.
    if "b" in self.axes and "h" in self.axes:
      return own // self.heads, own % self.heads, i, j
    if "b" in self.axes:
      return own, shared, i, j
    if "h" in self.axes:
      return shared, own, i, j
    return shared // self.heads, shared % self.heads, i, j

  def state(self, own, i, j, shared, scalars):
    b, h, i, j = self.place(own, i, j, shared, scalars)
    return self.entry(b, h, i, j, scalars)


def _iota(shape):
  """Numbers along the longer axis, in two axes: TPUs have no iota of one."""
  return jax.lax.broadcasted_iota(jnp.int32, shape, shape.index(max(shape)))
