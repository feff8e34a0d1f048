"""What the flash kernels on TPU share: their grid, and products of tiles.

Arrays come as [batch, heads, whole tiles, dim]. The grid is (batch, head, tile
of rows, step), and the step takes the next tile of the row from a list in
scalar memory, so that neither time nor memory traffic is spent on empty tiles.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attention.kernels.flash_plan import LIST_BASE, Plan
from attention.mask_base import EMPTY, FULL
from attention.tiles import Tile

LANES = 128
# Rows of a tile that are worked on at a time.
ROWS = 256
_VMEM_BYTES = 64 * 2**20


class Grid:
  """The grid of a kernel and the blocks that a step gets of each array."""

  def __init__(self, plan, q, k, v, lists, *, by_rows):
    self.plan = plan
    self.by_rows = by_rows
    self.batch, self.heads, self.q_len, _ = q.shape
    self.kv_len = k.shape[2]
    tiles = (self.q_len // plan.block_q, self.kv_len // plan.block_k)
    outer, inner = tiles if by_rows else tiles[::-1]
    self.list = lists[0 if by_rows else 1] if lists else None
    steps = inner if self.list is None else self.list.shape[-1]
    self.size = (self.batch, self.heads, outer, steps)

  def entry(self, b, h, i, t, scalars):
    """Returns the entry of the tile list for a step of the grid."""
    batch, heads, rows, steps = self.list.shape
    b, h = (b if batch > 1 else 0), (h if heads > 1 else 0)
    return scalars[2][((b * heads + h) * rows + i) * steps + t]

  def place(self, b, h, i, t, scalars):
    """Returns batch, head, row and column of the tile of a step."""
    if self.list is not None:
      t = self.entry(b, h, i, t, scalars) // LIST_BASE
    return (b, h, i, t) if self.by_rows else (b, h, t, i)

  def state(self, b, h, i, t, scalars):
    """Returns whether the tile of a step is EMPTY, MIXED or FULL."""
    return self.entry(b, h, i, t, scalars) % LIST_BASE

  def spec(self, block, index):
    """A block whose place is a function of batch, head, row and column."""

    def index_map(*step_and_scalars):
      step, scalars = step_and_scalars[:4], step_and_scalars[4:]
      return index(*self.place(*step, scalars))

    return pl.BlockSpec(block, index_map)

  def q_spec(self, x):
    return self.row_spec(x.shape[-1])

  def row_spec(self, width):
    block = (None, None, self.plan.block_q, width)
    return self.spec(block, lambda b, h, i, j: (b, h, i, 0))

  def k_spec(self, x):
    """Keys and values: query heads share them in groups."""
    group = self.heads // x.shape[1]
    block = (None, None, self.plan.block_k, x.shape[-1])
    return self.spec(block, lambda b, h, i, j: (b, h // group, j, 0))

  def column_spec(self, width):
    block = (None, None, self.plan.block_k, width)
    return self.spec(block, lambda b, h, i, j: (b, h, j, 0))

  def statistic_spec(self):
    block = (None, None, 1, self.plan.block_q)
    return self.spec(block, lambda b, h, i, j: (b, h, 0, i))

  def operand(self, number, array):
    """Returns an operand with two inner axes, and the spec of its blocks."""
    axes, inner = self.plan.axes[number], self.plan.inner(number)
    lead = axes[: len(axes) - len(inner)]
    block_q, block_k = self.plan.block_q, self.plan.block_k
    # A vector lies along the axis of the tile that it belongs to.
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

    return array, self.spec((*([None] * len(lead)), *block), index)

  def call(
    self,
    kernel: Callable,
    name: str,
    indices,
    in_specs,
    arrays,
    operands,
    out_specs,
    out_shapes,
    scratch,
    products,
  ):
    """Runs a kernel over the grid.

    `products` are the depths or widths of the products made of each tile.
    """
    placed = [self.operand(i, x) for i, x in enumerate(operands)]
    scalars = [*indices]
    scalars.append(
      jnp.zeros(1, jnp.int32) if self.list is None else self.list.reshape(-1)
    )
    specs = pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=self.size,
      in_specs=[*in_specs, *(spec for _, spec in placed)],
      out_specs=out_specs,
      scratch_shapes=scratch,
    )
    scores = math.prod(self.size) * self.plan.block_q * self.plan.block_k
    inputs = [*arrays, *(array for array, _ in placed)]
    return pl.pallas_call(
      functools.partial(kernel, self, len(inputs), len(out_specs)),
      name=name,
      grid_spec=specs,
      out_shape=out_shapes,
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
        vmem_limit_bytes=_VMEM_BYTES,
      ),
      cost_estimate=pl.CostEstimate(
        flops=2 * scores * sum(products),
        transcendentals=scores,
        bytes_accessed=sum(
          x.size * x.dtype.itemsize for x in (*inputs, *out_shapes)
        ),
      ),
      interpret=self.plan.interpret,
    )(*scalars, *inputs)

  @property
  def part(self) -> int:
    """How many rows of a tile are worked on at a time."""
    down = self.plan.block_q if self.by_rows else self.plan.block_k
    return math.gcd(down, ROWS) if down > ROWS else down

  def on_tile(self, scalars, process):
    """Calls process(tile, rows, masked) for the parts of a tile to be seen.

    A whole tile has more numbers than there are registers. `rows` are those of
    a part, along the first axis of the tile as it lies.
    """
    step = [pl.program_id(axis) for axis in range(4)]
    b, h, row, column = self.place(*step, scalars)
    block_q, block_k = self.plan.block_q, self.plan.block_k

    def parts(masked):
      def one(number, carry):
        start = number * self.part
        q_start, k_start = row * block_q, column * block_k
        q_shape, k_shape = (1, block_q), (1, block_k)
        if self.by_rows:
          q_start, q_shape = q_start + start, (self.part, 1)
        else:
          k_start, k_shape = k_start + start, (self.part, 1)
        tile = Tile(
          scalars[0][b],
          scalars[1][h],
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
    if self.plan.mask is not None:
      pl.when((state != FULL) & (state != EMPTY))(lambda: parts(masked=True))

  def values(self, refs, rows):
    """Returns the operands' values on a part of the current tile."""
    down = "q" if self.by_rows else "k"
    values = []
    for number, ref in enumerate(refs):
      inner = self.plan.inner(number)
      if inner == "qk":
        value = ref[rows, :] if self.by_rows else ref[:, rows]
      else:
        value = ref[rows, :] if inner == down else ref[...]
      if self.plan.booleans[number]:
        value = value.astype(jnp.int32) != 0
      if inner == "qk" and not self.by_rows:
        value = value.T
      values.append(value)
    return values


class TileGrid(Grid):
  """A grid over all tiles, which come together over what an array shares.

  Its axes are (what the array has of batch and heads, row, column, what it
  shares of them), so that gradients of what is shared are summed in place.
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
  return jax.lax.broadcasted_iota(jnp.int32, shape, shape.index(max(shape)))


def steps(kernel):
  """Gives a kernel its refs by group and calls it at each step."""

  @functools.wraps(kernel)
  def wrapped(grid, inputs, outputs, *refs):
    scalars, refs = refs[:3], refs[3:]
    operands = len(grid.plan.axes)
    arrays = refs[: inputs - operands]
    values = refs[inputs - operands : inputs]
    return kernel(
      grid,
      scalars,
      arrays,
      values,
      refs[inputs : inputs + outputs],
      refs[inputs + outputs :],
    )

  return wrapped


def scaled(plan: Plan, a: Array, b: Array) -> Array:
  """Returns scale * a b^T in float32."""
  return product_transposed(plan, a, b) * plan.scale


def product_transposed(plan: Plan, a: Array, b: Array) -> Array:
  """Returns a b^T in float32."""
  return jax.lax.dot_general(
    a,
    b,
    (((1,), (1,)), ((), ())),
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


def product(plan: Plan, a: Array, b: Array) -> Array:
  """Returns a b in float32, `a` in the dtype of `b`."""
  return jnp.dot(
    a.astype(b.dtype),
    b,
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


def wide(column: Array, width: int) -> Array:
  """Repeats a column, which is the same in each of LANES lanes."""
  repeats = -(-width // LANES)
  return jnp.concatenate([column] * repeats, axis=1)[:, :width]
