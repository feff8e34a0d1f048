"""Flash attention on TPU: the kernels that `attention.kernels.flash` calls.

Arrays come as [batch, heads, whole tiles, dim]. The grid is (batch, head, tile
of rows, step), and the step takes the next tile of the row from a list in
scalar memory, so that neither time nor memory traffic is spent on empty tiles.

In the kernel for keys and values a tile of scores lies on its side, [keys,
queries]: both its products then contract the axis they have at hand, and the
statistics of a row are a row. Score modifications and masks are elementwise and
never notice.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attention.kernels import flash_plan as planning
from attention.kernels.flash_plan import LEAST, LIST_BASE, MASKED, Plan
from attention.mask_base import EMPTY, FULL, Mask
from attention.tiles import Tile

# How arrays come.
LAYOUT = "bhnd"
# Kernels keep the list of tiles in scalar memory, 4 bytes an entry.
MAX_LISTED_TILES = 180_000
# Side of a tile of scores.
BLOCK = 512
_LANES = 128
# Rows of a tile that are worked on at a time.
_ROWS = 256
_VMEM_BYTES = 64 * 2**20


def unsupported(q: Array, k: Array, v: Array, mask: Mask | None) -> str | None:
  """Returns why the kernels do not take the arguments, or None if they do."""
  del v
  if mask is None:
    return None
  block_q, block_k = block_sizes(q, k, mask)
  if block_q % 8 or block_k % _LANES:
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


def block_sizes(q: Array, k: Array, mask: Mask | None) -> tuple[int, int]:
  """Returns the sides of a tile: BLOCK, less for short or fine calls."""
  sizes = (
    min(BLOCK, -(-q.shape[1] // 16) * 16),
    min(BLOCK, -(-k.shape[1] // _LANES) * _LANES),
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
  grid = _Grid(plan, q, k, v, lists, by_rows=True)
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
      pltpu.VMEM((plan.block_q, _LANES), jnp.float32),
      pltpu.VMEM((plan.block_q, _LANES), jnp.float32),
      pltpu.VMEM((plan.block_q, width), jnp.float32),
    ],
    products=(q.shape[-1], width),
  )
  return out, lse[:, :, 0]


def backward(
  plan: Plan,
  q: Array,
  k: Array,
  v: Array,
  operands: Sequence[Array],
  indices: tuple[Array, Array],
  lists: Sequence[Array],
  d_out: Array,
  lse: Array,
  delta: Array,
) -> tuple[Array, Array, Array, list[Array | None]]:
  """Returns the gradients of q, k, v and of the modifications' operands.

  Args:
    plan: as for `forward`, like all arguments up to `lists`.
    q: queries.
    k: keys.
    v: values.
    operands: arrays of the modifications and of the mask.
    indices: numbers of the batch elements and of the heads.
    lists: tiles of each row and of each column, or nothing.
    d_out: gradient of the output.
    lse: log-sum-exp, MASKED for rows to be left out, [batch, heads, q_len].
    delta: what the gradient of a weight loses, [batch, heads, q_len].
  """
  lse, delta = lse[:, :, None], delta[:, :, None]
  arguments = (plan, q, k, v, operands, indices, lists, d_out, lse, delta)
  d_operands = [None] * plan.mod_operands
  if plan.weigh == "ones":
    d_q, d_k = jnp.zeros_like(q), None
  else:
    d_q, row_gradients = _backward_rows(*arguments)
    d_operands = _merged(d_operands, row_gradients)
    d_operands = _merged(d_operands, _backward_tiles(*arguments))
  d_k, d_v, column_gradients = _backward_columns(*arguments)
  return d_q, d_k, d_v, _merged(d_operands, column_gradients)


def _merged(a, b):
  return [x if y is None else y for x, y in zip(a, b, strict=True)]


class _Grid:
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
    return math.gcd(down, _ROWS) if down > _ROWS else down

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


class _TileGrid(_Grid):
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


def _steps(kernel):
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


def _scaled(plan, a, b):
  """Returns scale * a b^T in float32."""
  product = jax.lax.dot_general(
    a,
    b,
    (((1,), (1,)), ((), ())),
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )
  return product * plan.scale


def _product(plan, a, b):
  return jnp.dot(
    a.astype(b.dtype),
    b,
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


@_steps
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
      score = _scaled(plan, q_ref[rows, :], k_ref[...])
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
      out_sum_ref[rows, :] += _product(plan, weights, v_ref[...])
      return
    if masked:
      score = jnp.where(visible, score, MASKED)
    before = most_ref[rows, :]
    most = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
    weights = jnp.exp(score - _wide(most, plan.block_k))
    kept = jnp.exp(before - most)
    most_ref[rows, :] = most
    sum_ref[rows, :] = kept * sum_ref[rows, :] + jnp.sum(
      weights, axis=1, keepdims=True
    )
    out_sum_ref[rows, :] = _wide(kept, v_ref.shape[-1]) * out_sum_ref[
      rows, :
    ] + _product(plan, weights, v_ref[...])

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
    out_ref[...] = (out_sum_ref[...] / _wide(total, v_ref.shape[-1])).astype(
      out_ref.dtype
    )
    lse = jnp.where(empty, -jnp.inf, most_ref[...] + jnp.log(total))
    # Rows of statistics are stored as rows: [block_q, lanes] -> [1, block_q]
    lse_ref[...] = lse.T[:1]


def _score_gradient(plan, score, pull, visible, d_weight, lse, delta):
  """Returns the weights and the gradients of the raw score and the values.

  Args:
    plan: the plan.
    score: modified scores of a tile.
    pull: takes the gradient of `score` to those of what it was made of.
    visible: the mask of the tile, or None.
    d_weight: gradients of the weights.
    lse: log-sum-exp of the queries, broadcastable.
    delta: what d_weight loses, broadcastable.
  """
  if plan.weigh == "sigmoid":
    weights = jax.nn.sigmoid(score)
    slope = weights * (1 - weights)
  else:
    weights = slope = jnp.exp(score - lse)
    d_weight = d_weight - delta
  if visible is not None:
    weights = jnp.where(visible, weights, 0.0)
    slope = jnp.where(visible, slope, 0.0)
  return weights, pull(slope * d_weight)


def _modify_with_gradient(plan, raw, tile, values):
  """Returns the modified scores and their pullback.

  The gradients of the values come for each score, like `raw`: they are summed
  where it is known which kernel sums what.
  """
  number = plan.mod_operands
  floating = [
    i for i in range(number) if jnp.issubdtype(values[i].dtype, jnp.floating)
  ]
  spread = [
    jnp.broadcast_to(values[i].astype(jnp.float32), raw.shape) for i in floating
  ]

  def modified(raw, *spread):
    full = list(values)
    for i, value in zip(floating, spread, strict=True):
      full[i] = value
    return plan.modified(raw, tile, full)

  score, pull = jax.vjp(modified, raw, *spread)

  def pullback(gradient):
    d_raw, *d_spread = pull(gradient)
    d_values = [None] * number
    for i, d in zip(floating, d_spread, strict=True):
      d_values[i] = d
    return d_raw, d_values

  return score, pullback


def _gradient_outputs(grid, kinds):
  """Returns which operands a kernel sums gradients of, their specs, shapes."""
  plan = grid.plan
  numbers = [i for i in range(plan.mod_operands) if plan.inner(i) in kinds]
  specs, shapes = [], []
  for i in numbers:
    lead = (grid.batch, grid.heads)
    if plan.inner(i) == "":
      specs.append(
        grid.spec((None, None, None, 1, 1), lambda b, h, i, j: (b, h, i, 0, 0))
      )
      shape = (*lead, grid.q_len // plan.block_q, 1, 1)
    elif plan.inner(i) == "q":
      specs.append(grid.row_spec(1))
      shape = (*lead, grid.q_len, 1)
    else:
      specs.append(grid.column_spec(1))
      shape = (*lead, grid.kv_len, 1)
    shapes.append(jax.ShapeDtypeStruct(shape, jnp.float32))
  return numbers, specs, shapes


def _collected(plan, numbers, gradients):
  """Sums gradients of some operands over what is shared, each in its place."""
  result = [None] * plan.mod_operands
  for i, gradient in zip(numbers, gradients, strict=True):
    gradient = gradient[..., 0]
    if plan.inner(i) == "":
      gradient = jnp.sum(gradient[..., 0], axis=-1)
    result[i] = planning.without_shared(gradient, plan.axes[i])
  return result


def _accumulate(refs, numbers, plan, d_values, rows):
  """Adds the gradients of the values of a tile to the outputs."""
  for ref, i in zip(refs, numbers, strict=True):
    gradient = jnp.sum(d_values[i], axis=1, keepdims=True)
    if plan.inner(i) == "":
      ref[...] += jnp.sum(gradient, axis=0, keepdims=True)
    else:
      ref[rows, :] += gradient


def _backward_rows(plan, q, k, v, operands, indices, lists, d_out, lse, delta):
  """The gradient of the queries and of what belongs to queries."""
  grid = _Grid(plan, q, k, v, lists, by_rows=True)
  numbers, specs, shapes = _gradient_outputs(grid, ("", "q"))

  @_steps
  def kernel(grid, scalars, arrays, operand_refs, outputs, scratch):
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref = arrays
    d_q_ref, *gradient_refs = outputs
    d_q_sum_ref, lse_column_ref, delta_column_ref = scratch
    step, last = pl.program_id(3), grid.size[3] - 1

    @pl.when(step == 0)
    def _():
      d_q_sum_ref[...] = jnp.zeros(d_q_sum_ref.shape, jnp.float32)
      for ref in gradient_refs:
        ref[...] = jnp.zeros(ref.shape, jnp.float32)
      for column, row in (
        (lse_column_ref, lse_ref),
        (delta_column_ref, delta_ref),
      ):
        column[...] = jnp.broadcast_to(_as_column(row[...]), column.shape)

    def process(tile, rows, masked):
      values = grid.values(operand_refs, rows)
      raw = _scaled(plan, q_ref[rows, :], k_ref[...])
      score, pull = _modify_with_gradient(plan, raw, tile, values)
      visible = plan.visible(tile, values) if masked else None
      d_weight = _product_transposed(plan, d_out_ref[rows, :], v_ref[...])
      _, (d_raw, d_values) = _score_gradient(
        plan,
        score,
        pull,
        visible,
        d_weight,
        _wide(lse_column_ref[rows, :], plan.block_k),
        _wide(delta_column_ref[rows, :], plan.block_k),
      )
      d_q_sum_ref[rows, :] += _product(plan, d_raw, k_ref[...])
      _accumulate(gradient_refs, numbers, plan, d_values, rows)

    grid.on_tile(scalars, process)

    @pl.when(step == last)
    def _():
      d_q_ref[...] = (d_q_sum_ref[...] * plan.scale).astype(d_q_ref.dtype)

  depth, width = q.shape[-1], v.shape[-1]
  d_q, *gradients = grid.call(
    kernel,
    "flash_backward_rows",
    indices,
    [
      grid.q_spec(q),
      grid.k_spec(k),
      grid.k_spec(v),
      grid.row_spec(width),
      grid.statistic_spec(),
      grid.statistic_spec(),
    ],
    [q, k, v, d_out, lse, delta],
    operands,
    [grid.row_spec(depth), *specs],
    [jax.ShapeDtypeStruct(q.shape, q.dtype), *shapes],
    [
      pltpu.VMEM((plan.block_q, depth), jnp.float32),
      pltpu.VMEM((plan.block_q, _LANES), jnp.float32),
      pltpu.VMEM((plan.block_q, _LANES), jnp.float32),
    ],
    products=(depth, width, depth),
  )
  return d_q, _collected(plan, numbers, gradients)


def _wide(column, width):
  """Repeats a column, which is the same in each of _LANES lanes."""
  repeats = -(-width // _LANES)
  return jnp.concatenate([column] * repeats, axis=1)[:, :width]


def _product_transposed(plan, a, b):
  return jax.lax.dot_general(
    a,
    b,
    (((1,), (1,)), ((), ())),
    precision=plan.precision,
    preferred_element_type=jnp.float32,
  )


def _backward_columns(
  plan, q, k, v, operands, indices, lists, d_out, lse, delta
):
  """The gradients of keys, values and of what belongs to keys."""
  grid = _Grid(plan, q, k, v, lists, by_rows=False)
  numbers, specs, shapes = _gradient_outputs(grid, ("k",))
  scored = plan.weigh != "ones"

  @_steps
  def kernel(grid, scalars, arrays, operand_refs, outputs, scratch):
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref = arrays
    d_k_ref, d_v_ref, *gradient_refs = outputs
    d_k_sum_ref, d_v_sum_ref = scratch
    step, last = pl.program_id(3), grid.size[3] - 1

    @pl.when(step == 0)
    def _():
      for ref in (d_k_sum_ref, d_v_sum_ref, *gradient_refs):
        ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def process(tile, rows, masked):
      values = grid.values(operand_refs, rows)
      visible = plan.visible(tile, values) if masked else None
      if not scored:
        weights = jnp.ones((grid.part, plan.block_q), jnp.float32)
        if masked:
          weights = jnp.where(visible, weights, 0.0)
      else:
        raw = _scaled(plan, k_ref[rows, :], q_ref[...])
        score, pull = _modify_with_gradient(plan, raw, tile, values)
        d_weight = _product_transposed(plan, v_ref[rows, :], d_out_ref[...])
        weights, (d_raw, d_values) = _score_gradient(
          plan, score, pull, visible, d_weight, lse_ref[...], delta_ref[...]
        )
        d_k_sum_ref[rows, :] += _product(plan, d_raw, q_ref[...])
        _accumulate(gradient_refs, numbers, plan, d_values, rows)
      d_v_sum_ref[rows, :] += _product(plan, weights, d_out_ref[...])

    grid.on_tile(scalars, process)

    @pl.when(step == last)
    def _():
      d_k_ref[...] = (d_k_sum_ref[...] * plan.scale).astype(d_k_ref.dtype)
      d_v_ref[...] = d_v_sum_ref[...].astype(d_v_ref.dtype)

  depth, width = q.shape[-1], v.shape[-1]
  # Query heads that share a key head leave parts that are summed afterwards.
  lead = (*q.shape[:2], k.shape[2])
  d_k, d_v, *gradients = grid.call(
    kernel,
    "flash_backward_columns",
    indices,
    [
      grid.q_spec(q),
      grid.k_spec(k),
      grid.k_spec(v),
      grid.row_spec(width),
      grid.statistic_spec(),
      grid.statistic_spec(),
    ],
    [q, k, v, d_out, lse, delta],
    operands,
    [grid.column_spec(depth), grid.column_spec(width), *specs],
    [
      jax.ShapeDtypeStruct((*lead, depth), _partial_dtype(q, k)),
      jax.ShapeDtypeStruct((*lead, width), _partial_dtype(q, v)),
      *shapes,
    ],
    [
      pltpu.VMEM((plan.block_k, depth), jnp.float32),
      pltpu.VMEM((plan.block_k, width), jnp.float32),
    ],
    products=(depth, width, depth, width),
  )
  return (
    _over_groups(d_k, k),
    _over_groups(d_v, v),
    _collected(plan, numbers, gradients),
  )


def _partial_dtype(q, x):
  return x.dtype if q.shape[1] == x.shape[1] else jnp.float32


def _over_groups(gradient, x):
  """Sums [batch, heads, ...] over the query heads that share a head of x."""
  if gradient.shape[1] == x.shape[1]:
    return gradient
  batch, heads, *rest = gradient.shape
  parts = gradient.reshape(batch, x.shape[1], heads // x.shape[1], *rest)
  return jnp.sum(parts, axis=2).astype(x.dtype)


def _backward_tiles(plan, q, k, v, operands, indices, lists, d_out, lse, delta):
  """The gradients of operands with a number for each score."""
  numbers = [i for i in range(plan.mod_operands) if plan.inner(i) == "qk"]
  result = [None] * plan.mod_operands
  for number in numbers:
    result[number] = _dense_gradient(
      plan, q, k, v, operands, indices, lists, d_out, lse, delta, number
    )
  return result


def _dense_gradient(
  plan, q, k, v, operands, indices, lists, d_out, lse, delta, number
):
  """The gradient of one operand with a number for each score."""
  states = lists[2] if plan.listed else None
  axes = plan.axes[number]
  grid = _TileGrid(plan, q, k, v, states, axes)

  @_steps
  def kernel(grid, scalars, arrays, operand_refs, outputs, scratch):
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref = arrays
    (gradient_ref,) = outputs

    @pl.when(pl.program_id(3) == 0)
    def _():
      gradient_ref[...] = jnp.zeros(gradient_ref.shape, jnp.float32)

    def process(tile, rows, masked):
      values = grid.values(operand_refs, rows)
      raw = _scaled(plan, q_ref[rows, :], k_ref[...])
      score, pull = _modify_with_gradient(plan, raw, tile, values)
      _, (_, d_values) = _score_gradient(
        plan,
        score,
        pull,
        plan.visible(tile, values) if masked else None,
        _product_transposed(plan, d_out_ref[rows, :], v_ref[...]),
        _as_column(lse_ref[:, rows]),
        _as_column(delta_ref[:, rows]),
      )
      gradient_ref[rows, :] += d_values[number]

    grid.on_tile(scalars, process)

  _, spec = grid.operand(number, operands[number])
  (gradient,) = grid.call(
    kernel,
    "flash_backward_tiles",
    indices,
    [
      grid.q_spec(q),
      grid.k_spec(k),
      grid.k_spec(v),
      grid.row_spec(v.shape[-1]),
      grid.statistic_spec(),
      grid.statistic_spec(),
    ],
    [q, k, v, d_out, lse, delta],
    operands,
    [spec],
    [jax.ShapeDtypeStruct(operands[number].shape, jnp.float32)],
    [],
    products=(q.shape[-1], v.shape[-1]),
  )
  return gradient


def _as_column(row):
  """[1, block] -> [block, 1]"""
  return jnp.broadcast_to(row, (_LANES, row.shape[1])).T[:, :1]
