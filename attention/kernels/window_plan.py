"""How the window kernel for TPUs lays out an image, its heads and its bias.

Images come in one of three layouts (`batch_in`). XLA puts the batch into the
lanes of a vector register where it is a multiple of them. Otherwise channels
lie in lanes, and the columns of an image in the rows of registers, unless the
batch fills those and the columns do not. The kernel takes each as it is, since
to change the layout would cost more than the attention.

A *strip* is the windows that are read together: P image rows of full width, or,
with the batch in rows or lanes, the same window of many images. A *group*
is as many heads as fit side by side into the 128 lanes of a vector register.
The keys and values of a group are stacked block-diagonally, [heads * keys,
lanes] with zeros where a row's head is not the lane's, so that one product over
all lanes gives the scores of all heads, [queries, heads * keys], and the next
one their outputs in the order of the channels.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from attention.kernels.tpu import (
  LANES,
  MASKED,
  SUBLANES,
  pack_mask,
  round_up,
)

# Windows and groups that one turn of the innermost loop works on, so that
# there is always something to do while a product is on its way.
UNROLL = {"forward": 8, "backward": 4}
# Windows and groups of one grid step: enough to hide its start.
STEP = 64
# A step takes more strips only while it fits into the smallest VMEM, of a TPU
# v4, with room for the compiler.
VMEM_AIM = 10 * 2**20
VMEM_LIMIT = 48 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
  """Shapes of one call; `images` x `strips` of strips make a grid step.

  Attributes:
    batch: images in all.
    height: rows of an image.
    width: columns of an image.
    heads: heads in all.
    dim: channels of a head.
    side: side P of a window.
    grid: whether windows are grids of far tokens, or blocks of neighbours.
    scale: factor of the scores.
    dtype: name of the dtype of q, k and v.
    has_bias: whether the bias is an argument with a gradient.
    direction: "forward" or "backward".
    batch_in: where images lie in a block: one after the other in "steps", or
      side by side in the "rows" or the "lanes" of registers.
    interpret: whether Pallas's interpreter runs the kernel.
    images: images of a grid step.
    strips: strips of each of its images.
  """

  batch: int
  height: int
  width: int
  heads: int
  dim: int
  side: int
  grid: bool
  scale: float
  dtype: str
  has_bias: bool
  direction: str
  batch_in: str = "steps"
  interpret: bool = False
  images: int = 1
  strips: int = 1

  @property
  def rows(self) -> int:
    """Windows in the height of an image."""
    return self.height // self.side

  @property
  def columns(self) -> int:
    """Windows in the width of an image."""
    return self.width // self.side

  @property
  def batch_minor(self) -> bool:
    """Whether the batch is the last axis of the images."""
    return self.batch_in == "lanes"

  @property
  def batch_rows(self) -> bool:
    """Whether the batch is the last axis but one, before the channels."""
    return self.batch_in == "rows"

  @property
  def packed(self) -> int:
    """Windows that are read and written together: they share 32-bit words."""
    return 2 if self.batch_rows and self.dtype == "bfloat16" else 1

  @property
  def windows(self) -> int:
    """Windows of a strip."""
    return {
      "steps": self.columns,
      "rows": self.images,
      "lanes": LANES,
    }[self.batch_in]

  @property
  def runs(self) -> int:
    """Parts of a window that start at a new tile of rows of registers."""
    return self.side if self.batch_in == "steps" else 1

  @property
  def run(self) -> int:
    """Tokens of each part: a row of the window, or all of it."""
    return self.side**2 // self.runs

  @property
  def padded_run(self) -> int:
    return round_up(self.run, SUBLANES)

  @property
  def queries(self) -> int:
    """Rows of a window in registers."""
    return self.runs * self.padded_run

  @property
  def keys(self) -> int:
    """Rows of a window in a stack of heads: a bfloat16 tile has 16 rows."""
    return round_up(self.queries, 2 * SUBLANES)

  @property
  def group_size(self) -> int:
    """Heads of a group; the last one may have fewer."""
    return min(self.heads, max(1, LANES // self.dim))

  @property
  def groups(self) -> int:
    return -(-self.heads // self.group_size)

  @property
  def lanes(self) -> int:
    return round_up(self.group_size * self.dim, LANES)

  @property
  def stacked(self) -> int:
    """Rows of the stacked keys of a whole group."""
    return self.group_size * self.keys

  @property
  def step_groups(self) -> int:
    """Groups of one grid step."""
    return self.groups if self.batch_in == "steps" else 1

  def group_heads(self, group: int) -> int:
    return min(self.group_size, self.heads - group * self.group_size)

  def stacked_heads(self, group: int) -> int:
    """Heads that are computed; with a group a step, all steps do the same."""
    if self.batch_in == "steps":
      return self.group_heads(group)
    return self.group_size

  def channels(self, group: int) -> slice:
    """The channels of a group in the image."""
    start = group * self.group_size * self.dim
    return slice(start, start + self.group_heads(group) * self.dim)

  @property
  def stride(self) -> int:
    """Columns between neighbours of a row of a window."""
    return self.columns if self.grid else 1

  def first_column(self, window):
    return window if self.grid else window * self.side

  @property
  def row_stride(self) -> int:
    """Rows between image rows of a strip in scratch memory."""
    return round_up(self.width, SUBLANES)

  @property
  def row_words(self) -> int:
    """Rows of 32-bit words that a token has in scratch memory."""
    return self.images // self.packed

  @property
  def scratch_shape(self) -> tuple[int, int, int]:
    """A strip by groups; its end is read as padding of the last window."""
    if self.batch_minor:
      return (1, LANES * self.queries, self.lanes)
    if self.batch_rows:
      return (1, self.queries * self.row_words, self.lanes)
    padding = (self.padded_run - self.run) * self.stride
    rows = self.side * self.row_stride + round_up(padding, SUBLANES)
    return (self.groups, rows, self.lanes)

  @property
  def bias_shape(self) -> tuple[int, int, int]:
    return (self.groups, self.queries, self.stacked)

  @property
  def precision(self) -> str:
    return "highest" if self.dtype == "float32" else "default"

  @property
  def unroll(self) -> int:
    """Windows of one turn of the loop over the windows of a strip."""
    most = max(1, UNROLL[self.direction] // self.step_groups)
    if self.batch_rows:
      # A tile of rows, so that the place of each within is known.
      return SUBLANES
    return largest_divisor(self.windows, most)

  @property
  def cores(self) -> int:
    """Parts that the grid has for chips with two cores (TPU v4 and v5p)."""
    if self.batch_minor:
      return 1
    steps = self.batch // self.images
    if self.batch_rows:
      steps *= self.window_steps
    return 1 if steps % 2 else 2

  @property
  def strip_axis(self) -> int:
    """Windows of an image among which strips of a step, batch in rows, lie.

    Below each other for blocks and side by side for grids: then the tokens of
    a window are equally far apart in a block.
    """
    return self.columns if self.grid else self.rows

  @property
  def window_steps(self) -> int:
    """Grid steps that pass over the windows of an image."""
    return self.rows * self.columns // self.strips

  @property
  def image_shape(self) -> tuple[int, ...]:
    """The view of an image whose blocks are strips."""
    if self.batch_minor:
      return self.split_shape[1:] + (self.batch,)
    if self.batch_rows:
      return (*self.split_shape[1:-1], self.batch, self.heads * self.dim)
    rows = (self.side, self.rows) if self.grid else (self.rows, self.side)
    return (self.batch, *rows, self.width, self.heads * self.dim)

  @property
  def split_shape(self) -> tuple[int, ...]:
    """The image with its height and width split into windows."""
    p, sizes = self.side, (self.rows, self.columns)
    split = [(p, n) if self.grid else (n, p) for n in sizes]
    return (self.batch, *split[0], *split[1], self.heads * self.dim)

  @property
  def block_channels(self) -> int:
    """Channels of a group; the last group may end beyond the image."""
    return min(self.heads, self.group_size) * self.dim

  @property
  def block_shape(self) -> tuple[int, ...]:
    if self.batch_minor:
      p = self.side
      tokens = (p, 1, p, 1) if self.grid else (1, p, 1, p)
      return (*tokens, self.block_channels, LANES)
    if self.batch_rows:
      p, n = self.side, self.strips
      tokens = (p, 1, p, n) if self.grid else (n, p, 1, p)
      return (*tokens, self.images, self.block_channels)
    rows = (self.side, self.strips) if self.grid else (self.strips, self.side)
    return (self.images, *rows, self.width, self.heads * self.dim)

  def vmem_bytes(self) -> int:
    """What a grid step needs, two buffers for each block."""
    itemsize = jnp.dtype(self.dtype).itemsize
    inputs, outputs = (3, 1) if self.direction == "forward" else (4, 3)
    width = round_up(self.width, 2 * SUBLANES)
    strip = self.side * width * round_up(self.heads * self.dim, LANES)
    if self.batch_minor:
      strip = self.side**2 * self.block_channels * LANES
    elif self.batch_rows:
      strip = self.side**2 * LANES
    # Two buffers: one is computed on while the other is on its way.
    blocks = self.images * self.strips * strip * itemsize * 2
    scratch = 4 * math.prod(self.scratch_shape)
    scores = 4 * self.queries * self.stacked
    biases = (
      scores * self.step_groups * (2 if self.direction == "forward" else 8)
    )
    constants = (
      2 * (1 + self.step_groups) * self.stacked * self.lanes * itemsize
    )
    return (
      (inputs + outputs) * (blocks + scratch) + biases + constants + 6 * scores
    )

  @property
  def step_strips(self) -> int:
    """Strips of a grid step."""
    return self.strips * (1 if self.batch_rows else self.images)

  @property
  def least_images(self) -> int:
    """Images that fill a tile of rows."""
    return SUBLANES * self.packed

  def sized(self) -> "Plan":
    """Returns the plan with as many strips in a grid step as are worth it."""
    images = self.least_images if self.batch_rows else 1
    best = dataclasses.replace(self, images=images, strips=1)
    if self.batch_minor:
      return best
    for images, strips in _step_sizes(self):
      plan = dataclasses.replace(self, images=images, strips=strips)
      if plan.vmem_bytes() <= VMEM_AIM:
        best = plan
    return best


def _step_sizes(plan: Plan) -> list[tuple[int, int]]:
  """Images and strips of a step, from small steps to large ones."""
  if plan.batch_rows:
    each, along = plan.least_images, plan.strip_axis
    strips = [s for s in range(1, along + 1) if along % s == 0]
    return [
      (plan.least_images, s) for s in strips if s * each <= max(STEP, each)
    ]
  each = plan.columns * plan.groups
  strips = [s for s in range(1, plan.rows + 1) if plan.rows % s == 0]
  images = [b for b in range(1, plan.batch + 1) if plan.batch % b == 0]
  sizes = [(1, s) for s in strips] + [(b, plan.rows) for b in images[1:]]
  return [(b, s) for b, s in sizes if b * s * each <= max(STEP, each)]


def largest_divisor(x: int, most: int) -> int:
  return max(d for d in range(1, most + 1) if x % d == 0)


def pack_bias(plan: Plan, bias):
  """Returns log2(e) * bias as [groups, queries, heads of a group * keys].

  Padded keys get MASKED, which makes their weights zero.

  Args:
    plan: the shapes.
    bias: [heads, tokens, tokens] or None.
  """
  tokens = plan.side**2
  if bias is None:
    # It hides the padding even so.
    bias = jnp.zeros((plan.heads, tokens, tokens), jnp.float32)
  bias = bias.astype(jnp.float32) * math.log2(math.e)
  # [heads, runs, run, runs, run]: both tokens are in runs, each of which is
  # padded to whole registers of 8 rows.
  bias = bias.reshape(-1, plan.runs, plan.run, plan.runs, plan.run)
  extra = plan.padded_run - plan.run
  bias = jnp.pad(bias, ((0, 0), (0, 0), (0, extra), (0, 0), (0, 0)))
  bias = jnp.pad(
    bias, ((0, 0),) * 4 + ((0, extra),), constant_values=MASKED
  ).reshape(plan.heads, plan.queries, plan.queries)
  # Heads to whole groups, keys to whole bfloat16 tiles of 16 rows.
  missing = plan.groups * plan.group_size - plan.heads
  bias = jnp.pad(
    bias,
    ((0, missing), (0, 0), (0, plan.keys - plan.queries)),
    constant_values=MASKED,
  )
  # [groups, heads, queries, keys] -> [groups, queries, heads * keys]: the heads
  # of a group side by side, as the product with stacked keys has them.
  bias = bias.reshape(plan.groups, plan.group_size, plan.queries, plan.keys)
  return bias.swapaxes(1, 2).reshape(plan.bias_shape)


def unpack_bias(plan: Plan, packed):
  """Returns the [heads, tokens, tokens] of a packed [groups, queries, ...]."""
  # The reverse of `pack_bias`; what padding has got is dropped.
  x = packed.reshape(plan.groups, plan.queries, plan.group_size, plan.keys)
  x = x.swapaxes(1, 2)[..., : plan.queries]
  x = x.reshape(-1, plan.runs, plan.padded_run, plan.runs, plan.padded_run)
  x = x[: plan.heads, :, : plan.run, :, : plan.run]
  return x.reshape(plan.heads, plan.side**2, plan.side**2)


def head_masks(plan: Plan):
  """Returns what makes stacks block-diagonal and what sums over a head.

  Returns:
    bits: int32, to be combined by "and" with a stack read as int32; in
      bfloat16 two rows share one. [rows, lanes].
    sums: [groups, heads * keys, lanes] in the plan's dtype: 1 where a row is a
      key of the lane's head. Lanes beyond the last head belong to the first, so
      that no row sum is zero.
  """
  # Row = head * keys + token, with gaps behind each run.
  row = np.arange(plan.stacked)[:, None]
  head, token = row // plan.keys, row % plan.keys
  real = (token < plan.queries) & (token % plan.padded_run < plan.run)
  lane_head = np.arange(plan.lanes)[None] // plan.dim
  mask = (head == lane_head) & real
  sums = []
  for group in range(plan.groups):
    owner = np.where(lane_head < plan.group_heads(group), lane_head, 0)
    sums.append((head == owner) & real)
  bits = pack_mask(mask, plan.dtype)
  return bits, jnp.asarray(np.stack(sums), plan.dtype)
