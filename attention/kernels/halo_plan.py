"""How the halo kernel for TPUs lays out an image, its heads and positions.

A *strip* is all blocks of the same rows. A *group* is as many heads as fit side
by side into the 128 lanes of a vector register. The queries of a group are
stacked block-diagonally, [heads * queries, lanes] with zeros where a row's head
is not the lane's, so that one product over all lanes gives the scores of all
heads, [keys, heads * queries]. Keys lie in rows, so that the maximum and the
sum of a softmax are taken without moving anything between lanes.

Positions are features of queries and keys. With one feature for each row y of a
block and row i of a window,

  query feature (y', i') = [y = y'] q . Rh[i' - y' + w - 1]
  key feature (y', i') = [i = i']

have the wanted product; and so for columns. The embeddings of all (y', i') are
one matrix, which the queries are multiplied by.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

LANES = 128
SUBLANES = 8
# Score of a key that is not there; finite, so that differences stay numbers.
MASKED = -1e30


def round_up(x: int, multiple: int) -> int:
  return -(-x // multiple) * multiple


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
    """Rows of a head's queries: each row of a block starts a new tile."""
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
  def features(self) -> int:
    """Features of positions along one axis, in whole registers."""
    return round_up(self.side * self.window, LANES)

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
    return round_up(self.width - self.block + self.padded_window, SUBLANES)

  def query_scratch(self, lanes: int) -> tuple[int, int, int]:
    """A strip of queries; its end is read as padding of the last block."""
    return (self.groups, self.side * self.query_row + self.padded_side, lanes)

  def key_scratch(self, lanes: int) -> tuple[int, int, int]:
    """The strip of keys that a strip of queries sees."""
    return (self.groups, self.window * self.key_row, lanes)

  def image_scratch(self, lanes: int) -> tuple[int, int, int]:
    """An image of keys with its halo."""
    rows = self.height + 2 * self.halo
    return (self.groups, rows * self.key_row, lanes)

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
    scores = self.keys * self.stacked
    constants = 6 * self.features * (self.stacked + self.keys + self.lanes)
    total = queries + outs + keys + values + 4 * (scratch + 6 * scores)
    total += constants * self.itemsize
    if direction == "backward":
      total += 2 * queries + keys + values + outs
      total += 4 * math.prod(self.image_scratch(both))
      total += 4 * math.prod(self.query_scratch(self.lanes)) + 16 * scores
      total += 16 * self.groups * self.lanes * self.features
    return total


def head_masks(plan: Plan, dim: int, lanes: int):
  """Returns what keeps the own head of each row of a stack of queries.

  Returns:
    bits: int32, to be combined by "and" with a stack read as int32; in
      bfloat16 two rows share one. Rows of padding are cut off as well.
    mask: the same as 0 and 1 in float32. [stacked, lanes].
  """
  row = np.arange(plan.stacked)[:, None]
  head, column = row // plan.queries, row % plan.padded_side
  mask = head == np.arange(lanes)[None] // dim
  mask &= (head < plan.group_size) & (column < plan.side)
  if plan.dtype == "float32":
    bits = np.where(mask, -1, 0).astype(np.int32)
  else:
    half = np.where(mask, 0xFFFF, 0).astype(np.uint32)
    bits = (half[::2] | half[1::2] << 16).view(np.int32)
  return jnp.asarray(bits), jnp.asarray(mask, jnp.float32)


def position_masks(plan: Plan):
  """Returns which features of rows, and of columns, a query and a key have.

  Returns:
    queries: [2, stacked, features] in float32: 1 where the feature's row (or
      column) of the block is the query's.
    keys: [2, keys, features] in the plan's dtype: 1 where the feature's row (or
      column) of the window is the key's.
  """
  feature = np.arange(plan.features)[None]
  exists = feature < plan.side * plan.window
  token = np.arange(plan.stacked)[:, None] % plan.queries
  own = (token // plan.padded_side, token % plan.padded_side)
  queries = [(feature // plan.window == x) & exists for x in own]
  token = np.arange(plan.keys)[:, None]
  own = (token // plan.padded_window, token % plan.padded_window)
  keys = [(feature % plan.window == x) & exists for x in own]
  return (
    jnp.asarray(np.stack(queries), jnp.float32),
    jnp.asarray(np.stack(keys), plan.dtype),
  )


def pack_positions(plan: Plan, *embeddings):
  """Returns [axes, lanes, features] from [side, window, dim] for each axis.

  The same for each head; divided by the scale, which multiplies all scores.
  """
  packed = []
  for x in embeddings:
    x = x.astype(jnp.float32).reshape(-1, plan.dim).T / plan.scale
    x = jnp.concatenate([x] * plan.group_size)
    rows, columns = plan.lanes - x.shape[0], plan.features - x.shape[1]
    packed.append(jnp.pad(x, ((0, rows), (0, columns))))
  return jnp.stack(packed).astype(plan.dtype)


def unpack_positions(plan: Plan, packed):
  """Returns the gradients of the embeddings from that of the packed ones.

  Args:
    plan: the shapes.
    packed: [axes, lanes, features], the sum over all groups.
  """
  heads = plan.group_size
  x = packed[:, : heads * plan.dim, : plan.side * plan.window]
  x = x.reshape(-1, heads, plan.dim, plan.side, plan.window).sum(1)
  return tuple(x.transpose(0, 2, 3, 1) / plan.scale)
