"""How the halo kernel for TPUs lays out an image, its heads and positions.

A *strip* is all blocks of the same rows. A *group* is as many heads as fit side
by side into the 128 lanes of a vector register. The queries of a group are
stacked block-diagonally, [heads * queries, lanes] with zeros where a row's head
is not the lane's, so that one product over all lanes gives the scores of all
heads, [keys, heads * queries]. Keys lie in rows, so that the maximum and the
sum of a softmax are taken without moving anything between lanes.

Embeddings of positions are *position keys*, which precede the keys: one for
each difference of a row i of a window and a row y of a block, and so for
columns. A query's scores with the rows of its window are a stretch of those
that starts with its own y.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from attention.kernels.tpu import LANES, SUBLANES, pack_mask, round_up

# Stacked queries that one turn of a loop works on, block by block together: the
# products of one run while the exponentials of another do. More are no gain.
TURN = 1024


@dataclasses.dataclass(frozen=True)
class Plan:
  """Shapes of one call.

  Attributes:
    batch: images.
    height: rows of the image of keys.
    width: columns of it.
    heads: heads in all.
    dim: channels of a head's queries and keys.
    v_dim: channels of a head's values.
    block: side of a block of the image.
    halo: tokens a window has beyond its block, on each side.
    stride: tokens of the image for each query, along each axis.
    scale: factor of the scores.
    mask_padding: whether keys beyond the edge are left out.
    dtype: name of the dtype of q, k and v.
    interpret: whether Pallas's interpreter runs the kernel.
  """

  batch: int
  height: int
  width: int
  heads: int
  dim: int
  v_dim: int
  block: int
  halo: int
  stride: int
  scale: float
  mask_padding: bool
  dtype: str
  interpret: bool = False

  @property
  def rows(self) -> int:
    """Strips of an image."""
    return self.height // self.block

  @property
  def columns(self) -> int:
    """Blocks of a strip."""
    return self.width // self.block

  @property
  def side(self) -> int:
    """Queries along a side of a block."""
    return self.block // self.stride

  @property
  def window(self) -> int:
    return self.block + 2 * self.halo

  @property
  def padded_side(self) -> int:
    return round_up(self.side, SUBLANES)

  @property
  def padded_window(self) -> int:
    return round_up(self.window, SUBLANES)

  @property
  def queries(self) -> int:
    """Rows of a head's queries: each row of a block starts a new register.

    So rows of a block are put together, and taken apart, register by register.
    """
    return self.side * self.padded_side

  @property
  def keys(self) -> int:
    """Rows of a window's keys; a bfloat16 tile has 16."""
    return round_up(self.window * self.padded_window, 2 * SUBLANES)

  @property
  def group_size(self) -> int:
    """Heads of a group; the last one may have fewer."""
    return min(self.heads, max(1, LANES // max(self.dim, self.v_dim)))

  @property
  def groups(self) -> int:
    return -(-self.heads // self.group_size)

  @property
  def stacked(self) -> int:
    """Rows of the stacked queries of a group."""
    return round_up(self.group_size * self.queries, LANES)

  @property
  def lanes(self) -> int:
    return round_up(self.group_size * self.dim, LANES)

  @property
  def v_lanes(self) -> int:
    return round_up(self.group_size * self.v_dim, LANES)

  @property
  def offsets(self) -> int:
    """Differences of a row of a window and a row of a block."""
    return self.window + self.side - 1

  @property
  def axis_keys(self) -> int:
    """Position keys of an axis, enough for a padded window of each row."""
    return round_up(self.padded_window + self.side - 1, SUBLANES)

  @property
  def position_keys(self) -> int:
    """Position keys of both axes, in whole bfloat16 tiles."""
    return round_up(2 * self.axis_keys, 2 * SUBLANES)

  @property
  def all_keys(self) -> int:
    return self.position_keys + self.keys

  @property
  def margin(self) -> int:
    """Rows of zeros before the gradients of the scores of an axis."""
    return round_up(self.side - 1, SUBLANES)

  @property
  def blocks_a_turn(self) -> int:
    """Blocks of one turn of the loop over a strip, which they divide."""
    if self.interpret:
      # More is no gain there, and more code to compile.
      return 1
    most = max(1, TURN // (self.groups * self.stacked))
    return max(n for n in range(1, most + 1) if self.columns % n == 0)

  @property
  def position_scratch(self) -> tuple[int, int, int, int]:
    """Scores of position keys: of each block and group of a turn, and axis."""
    blocks = self.blocks_a_turn * self.groups
    return (blocks, 2, self.axis_keys, self.stacked)

  @property
  def position_bar_scratch(self) -> tuple[int, int, int, int]:
    """Gradients of scores of an axis of a window, zeros around them."""
    blocks, axes, rows, stacked = self.position_scratch
    return (blocks, axes, self.margin + rows, stacked)

  def channels(self, group: int, dim: int) -> slice:
    """The channels of a group in the image, for heads of dimension `dim`."""
    start = group * self.group_size
    return slice(start * dim, min(start + self.group_size, self.heads) * dim)

  @property
  def query_row(self) -> int:
    """Scratch rows from one image row of queries to the next."""
    return round_up(self.width // self.stride, SUBLANES)

  @property
  def key_row(self) -> int:
    """The same for keys, with room for halos and padding."""
    last = self.width - self.block + self.padded_window
    return round_up(self.key_left - self.halo + last, SUBLANES)

  @property
  def key_left(self) -> int:
    """Rows before the first key of an image row: whole registers are stored."""
    return round_up(self.halo, SUBLANES)

  def query_scratch(self, lanes: int) -> tuple[int, int, int]:
    """A strip of queries; its end is read as padding of the last block."""
    return (self.groups, self.side * self.query_row + self.padded_side, lanes)

  def key_scratch(self, lanes: int) -> tuple[int, int, int]:
    """The strip of keys that a strip of queries sees."""
    return (self.groups, self.window * self.key_row, lanes)

  @property
  def precision(self) -> str:
    return "highest" if self.dtype == "float32" else "default"

  @property
  def itemsize(self) -> int:
    return jnp.dtype(self.dtype).itemsize

  @property
  def cores(self) -> int:
    """Parts that the grid has for chips with two cores (TPU v4 and v5p)."""
    return 2 if self.batch % 2 == 0 else 1

  @property
  def query_shape(self) -> tuple[int, int, int, int]:
    return (
      self.batch,
      self.height // self.stride,
      self.width // self.stride,
      self.heads * self.dim,
    )

  @property
  def out_shape(self) -> tuple[int, int, int, int]:
    return (*self.query_shape[:3], self.heads * self.v_dim)

  @property
  def key_shape(self) -> tuple[int, int, int, int]:
    return (self.batch, self.height, self.width, self.heads * self.dim)

  @property
  def value_shape(self) -> tuple[int, int, int, int]:
    return (self.batch, self.height, self.width, self.heads * self.v_dim)

  @property
  def sums_shape(self) -> tuple[int, int, int, int]:
    """Of the log-sum-exps: a row for each block and group."""
    return (self.batch, self.rows, self.columns * self.groups, self.stacked)

  def vmem_bytes(self, direction: str) -> int:
    """What a grid step needs, two buffers for each block."""

    def image(rows: int, width: int, channels: int) -> int:
      width = round_up(width, 2 * SUBLANES)
      return 2 * rows * width * round_up(channels, LANES) * self.itemsize

    queries = image(self.side, self.width // self.stride, self.query_shape[-1])
    outs = image(self.side, self.width // self.stride, self.out_shape[-1])
    keys = image(self.height, self.width, self.key_shape[-1])
    values = image(self.height, self.width, self.value_shape[-1])
    both = self.lanes + self.v_lanes
    scratch = math.prod(self.query_scratch(both))
    scratch += math.prod(self.key_scratch(both))
    scratch += math.prod(self.position_scratch)
    # Scores, weights and what is between them, as many as are alive at once.
    scores = self.all_keys * self.stacked
    constants = 2 * self.position_keys * self.lanes
    constants += 2 * self.stacked * both + self.padded_window * self.keys
    total = queries + outs + keys + values
    total += 4 * (scratch + 3 * scores)
    total += constants * self.itemsize
    if direction == "backward":
      # Gradients of images, with their scratch, and of the scores.
      total += queries + keys + values
      total += 4 * math.prod(self.key_scratch(both))
      total += 4 * math.prod(self.query_scratch(self.lanes))
      total += 4 * (math.prod(self.position_bar_scratch) + 2 * scores)
      total += 8 * self.position_keys * self.lanes
    return total


def head_masks(plan: Plan, dim: int, lanes: int):
  """Returns what keeps the own head of each row of a stack of queries.

  That is bits, int32 to be combined by "and" with a stack [stacked, lanes] read
  as int32; in bfloat16 two rows share one. Rows of padding are cut off as well.
  """
  # Row = head * queries + y * padded_side + x.
  row = np.arange(plan.stacked)[:, None]
  head, column = row // plan.queries, row % plan.padded_side
  mask = head == np.arange(lanes)[None] // dim
  mask &= (head < plan.group_size) & (column < plan.side)
  return pack_mask(mask, plan.dtype)


def own_rows(plan: Plan):
  """Returns the row and the column of each query in its block.

  int32 [axes, 8, stacked], the same eight times: queries are the lanes of
  scores, and a whole register compares with them as it is.
  """
  token = np.arange(plan.stacked) % plan.queries
  own = np.stack([token // plan.padded_side, token % plan.padded_side])
  return jnp.asarray(np.repeat(own[:, None], SUBLANES, axis=1), jnp.int32)


def row_sums(plan: Plan):
  """Returns what sums over the keys of each row of a window.

  [padded_window, keys] in the plan's dtype.
  """
  row = np.arange(plan.padded_window)[:, None]
  row_of_key = np.arange(plan.keys)[None] // plan.padded_window
  return jnp.asarray((row == row_of_key) & (row < plan.window), plan.dtype)


def pack_positions(plan: Plan, *embeddings):
  """Returns position keys [position_keys, lanes].

  The same for each head; divided by the scale, which multiplies all scores.

  Args:
    plan: the shapes.
    *embeddings: [side, window, dim] for rows and for columns, which are read as
      functions of the difference i - y of their indices.
  """
  # The last y with i = 0 and all y before it, then y = 0 with all i beyond 0:
  # [axes, offsets, dim].
  x = jnp.stack(embeddings).astype(jnp.float32) / plan.scale
  x = jnp.concatenate([x[:, ::-1, 0], x[:, 0, 1:]], axis=1)
  x = jnp.pad(x, ((0, 0), (0, plan.axis_keys - plan.offsets), (0, 0)))
  # [axes * axis_keys, heads * dim]: position keys are shared by all heads, so
  # each head's lanes have a copy.
  x = jnp.tile(x.reshape(-1, plan.dim), (1, plan.group_size))
  missing = (plan.position_keys - x.shape[0], plan.lanes - x.shape[1])
  return jnp.pad(x, [(0, n) for n in missing]).astype(plan.dtype)


def unpack_positions(plan: Plan, packed):
  """Returns the gradients of the embeddings.

  Args:
    plan: the shapes.
    packed: [position_keys, lanes], products of queries with the gradients of
      scores. Without the factor of the scores, as `pack_positions` divides by
      it.

  That of a difference is all at the one entry which `pack_positions` reads.
  """
  heads = plan.group_size
  x = packed[: 2 * plan.axis_keys, : heads * plan.dim]
  x = x.reshape(2, plan.axis_keys, heads, plan.dim)
  # Copies for the heads add up.
  x = x[:, : plan.offsets].sum(2)
  first = x[:, : plan.side][:, ::-1, None]
  others = jnp.pad(
    x[:, None, plan.side :], ((0, 0), (0, plan.side - 1), (0, 0), (0, 0))
  )
  return tuple(jnp.concatenate([first, others], axis=2))
