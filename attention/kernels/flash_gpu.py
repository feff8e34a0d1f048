"""Flash attention on NVIDIA GPUs: the kernels behind `kernels.flash`.

How they are launched and with which tiles; what a program does is in
`kernels.flash_gpu_kernels`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from attention.kernels import flash_gpu_kernels as kernels
from attention.kernels import triton
from attention.kernels.flash_gpu_tiles import WIDE, Arrays, backward_step

# How arrays come; Triton reads rows wherever they lie.
LAYOUT = "bnhd"
# Most queries and keys of a tile.
TILE = 128
# What the number of keys of a tile is a multiple of.
LEAST_KEYS = triton.LEAST_TILE
# Most channels of queries and keys.
MOST_DIM = 256
# Few queries (`flash_few`): each key head by itself. Most rows of queries of
# its group; how many programs keep all multiprocessors busy; and the least
# tiles for each, so that it has loads under way.
HEADS_BESIDE = False
MOST_FEW_ROWS = 64
PROGRAMS = 512
PART_TILES = 4


def unsupported(q, k, v, mask) -> str | None:
  """Says why the kernels cannot take these arguments, or returns None.

  `q`, `k` and `v` are [batch, length, heads, dim], with the channels of
  factored biases.
  """
  dim, v_dim = q.shape[-1], v.shape[-1]
  if dim > MOST_DIM or v_dim > max(dim, 2 * WIDE):
    return (
      f"q has heads of dimension {dim} and v of {v_dim}; the kernel takes q of "
      f"at most {MOST_DIM} and v of at most {2 * WIDE} or as wide as q"
    )
  block_q, block_k = block_sizes(q, k, mask)
  if min(block_q, block_k) < triton.LEAST_TILE:
    return (
      f"tiles of {block_q} x {block_k}, which the mask asks for, are smaller "
      f"than {triton.LEAST_TILE} x {triton.LEAST_TILE}"
    )
  return None


def block_sizes(q, k, mask) -> tuple[int, int]:
  """Returns the sides of a tile, powers of two; arguments as above."""
  most = TILE // 2 if q.shape[-1] > 2 * WIDE else TILE
  if q.dtype == jnp.float32:
    # Products in full float32 have no matrix unit and fill the registers.
    most = TILE // 4
  sizes = (min(most, triton.tile_size(x.shape[1])) for x in (q, k))
  multiples = (0, 0) if mask is None else mask.tile_multiples()
  # The greatest common divisor of a size and 0 is the size.
  return tuple(
    math.gcd(size, multiple)
    for size, multiple in zip(sizes, multiples, strict=True)
  )


def few_tokens(q, k) -> int:
  """Returns the tokens in a tile of keys for few queries."""
  return block_sizes(q, k, None)[1]


def few_rows(rows: int) -> int:
  """Returns the rows of a tile that holds so many."""
  return triton.tile_size(rows)


def few_parts(heads: int, tiles: int) -> int:
  """Returns in how many parts the keys of each head are read.

  Args:
    heads: how many heads there are, in all of the batch.
    tiles: tiles of keys of each.
  """
  return max(1, min(-(-PROGRAMS // heads), tiles // PART_TILES))


def forward(plan, q, k, v, operands, indices, lists):
  """Returns the output and the log-sum-exp of each query.

  Args:
    plan: a `flash_plan.Plan`.
    q: [batch, q_len, heads, dim], padded to whole tiles like all arrays.
    k: [batch, kv_len, k_heads, dim].
    v: [batch, kv_len, v_heads, v_dim].
    operands: arrays of the modifications and then of the mask.
    indices: numbers of the batch elements and of the heads, and where this is a
      part of a sequence, the positions of the first query and key, [2].
    lists: of the tiles of each row and of each column, and the states of all;
      or empty.

  Returns:
    [batch, q_len, heads, v_dim] in the dtype of `q`, and [batch, heads, q_len]
    in float32 (of softmax only, otherwise zeros).
  """
  batch, q_len, heads, _ = q.shape
  out_shape = (
    # What is summed up afterwards is not rounded before.
    jax.ShapeDtypeStruct(
      (batch, q_len, heads, v.shape[-1]),
      jnp.float32 if plan.parts > 1 else q.dtype,
    ),
    jax.ShapeDtypeStruct((batch, heads, q_len), jnp.float32),
  )
  arrays = Arrays(q, k, v, operands, indices, lists[:1])
  return _call(
    plan,
    kernels.forward_kernel,
    "flash_attention_forward",
    arrays,
    out_shape,
    rows=plan.block_q,
    grid=(q_len // plan.block_q, heads, batch),
    products=q.shape[-1] + v.shape[-1],
    num_stages=3 if q.dtype != jnp.float32 else 1,
  )


def backward(plan, q, k, v, operands, indices, lists, d_out, lse, delta):
  """Returns the gradients to q, k, v and the operands of modifications.

  Args:
    plan, q, k, v, operands, indices, lists: as for `forward`.
    d_out: gradient to the output, like it.
    lse: log-sum-exp of each query, [batch, heads, q_len].
    delta: what the softmax takes away from the gradient to each weight,
      [batch, heads, q_len].
  """
  arrays = Arrays(q, k, v, operands, indices, (), d_out, lse, delta)
  call = _Backward(plan, arrays, lists)
  d_q, by_query = call.queries()
  d_k, d_v, by_key = call.keys()
  d_operands = []
  for number in range(plan.mod_operands):
    if number in by_query:
      gradient = by_query[number]
    elif number in by_key:
      gradient = by_key[number]
    elif number in _differentiated(plan, operands, "qk"):
      gradient = call.dense(number)
    else:
      gradient = None
    d_operands.append(gradient)
  return d_q, d_k, d_v, d_operands


@dataclasses.dataclass(frozen=True)
class _Backward:
  """The three kernels of the backward pass, and what they are called with."""

  plan: object
  arrays: Arrays
  lists: tuple

  def queries(self):
    """Returns the gradients to queries and to operands without keys."""
    plan, q = self.plan, self.arrays.q
    if plan.weigh == "ones":
      # Sums of values know neither queries nor score modifications.
      return jnp.zeros_like(q), {}
    batch, q_len, heads, dim = q.shape
    tiles = q_len // plan.block_q
    sums = {
      n: jax.ShapeDtypeStruct(
        (batch, heads, q_len if plan.inner(n) == "q" else tiles), jnp.float32
      )
      for n in _differentiated(plan, self.arrays.operands, "", "q")
    }
    d_q, sums = self._call(
      kernels.queries_kernel,
      "flash_attention_backward_queries",
      (jax.ShapeDtypeStruct(q.shape, q.dtype), sums),
      self.lists[:1],
      rows=plan.block_q,
      grid=(tiles, heads, batch),
      products=2 * dim + self.arrays.v.shape[-1],
    )
    return d_q, {n: self._summed(n, x) for n, x in sums.items()}

  def keys(self):
    """Returns the gradients to keys, values and operands along keys."""
    plan, k, v = self.plan, self.arrays.k, self.arrays.v
    batch, _, heads, dim = self.arrays.q.shape
    kv_len = k.shape[1]
    # Query heads that share keys add up outside, in float32.
    d_k, d_v = (
      jax.ShapeDtypeStruct(
        (batch, kv_len, heads, x.shape[3]),
        x.dtype if x.shape[2] == heads else jnp.float32,
      )
      for x in (k, v)
    )
    sums = {
      n: jax.ShapeDtypeStruct((batch, heads, kv_len), jnp.float32)
      for n in _differentiated(plan, self.arrays.operands, "k")
    }
    d_k, d_v, sums = self._call(
      kernels.keys_kernel,
      "flash_attention_backward_keys",
      (d_k, d_v, sums),
      self.lists[1:2],
      rows=plan.block_k,
      grid=(kv_len // plan.block_k, heads, batch),
      products=2 * dim + 2 * v.shape[-1],
    )
    d_k, d_v = (
      d
      if x.shape[2] == heads
      else d.reshape(*x.shape[:3], -1, x.shape[3]).sum(axis=3).astype(x.dtype)
      for d, x in ((d_k, k), (d_v, v))
    )
    return d_k, d_v, {n: self._summed(n, x) for n, x in sums.items()}

  def dense(self, number):
    """Returns the gradient to an operand along queries and keys."""
    plan, array = self.plan, self.arrays.operands[number]
    batch, _, heads, _ = self.arrays.q.shape
    sizes = [
      size if axis in plan.axes[number] else 1
      for axis, size in (("b", batch), ("h", heads))
    ]
    q_len, kv_len = array.shape[-2:]
    step = backward_step(self.arrays.q, self.arrays.v, plan.block_k)
    d_array = self._call(
      functools.partial(kernels.dense_kernel, number=number),
      "flash_attention_backward_bias",
      jax.ShapeDtypeStruct((*sizes, q_len, kv_len), array.dtype),
      self.lists[2:],
      rows=plan.block_q,
      grid=(kv_len // step, q_len // plan.block_q, math.prod(sizes)),
      products=self.arrays.q.shape[-1] + self.arrays.v.shape[-1],
    )
    return d_array.reshape(array.shape)

  def _call(self, kernel, name, out_shape, lists, **options):
    arrays = self.arrays._replace(lists=lists)
    # What more stages load ahead must fit into shared memory and registers.
    wide = max(x.shape[3] for x in (self.arrays.q, self.arrays.v)) > 2 * WIDE
    wide |= any(
      self.plan.inner(n) == "qk" for n in range(len(self.arrays.operands))
    )
    return _call(
      self.plan,
      kernel,
      name,
      arrays,
      out_shape,
      num_stages=1 if wide else 2,
      **options,
    )

  def _summed(self, number, gradient):
    """Sums [batch, heads, length] over the axes the operand does not have."""
    axes = self.plan.axes[number]
    shared = [i for i, letter in enumerate("bh") if letter not in axes]
    if not self.plan.inner(number):
      shared.append(2)
    return gradient.sum(axis=tuple(shared))


def _differentiated(plan, operands, *inner):
  """Returns which operands with these inner axes have a gradient."""
  return [
    n
    for n in range(plan.mod_operands)
    if plan.inner(n) in inner
    and jnp.issubdtype(operands[n].dtype, jnp.floating)
  ]


def _call(
  plan, kernel, name, arrays, out_shape, *, rows, grid, products, num_stages
):
  lists = arrays.lists
  batch, q_len, heads, _ = arrays.q.shape
  scores = batch * heads * q_len * arrays.k.shape[1]
  if lists:
    # Rows of a list are as long as the longest of them.
    tiles = math.prod(lists[0].shape[2:])
    scores = batch * heads * tiles * plan.block_q * plan.block_k
  return triton.pallas_call(
    functools.partial(kernel, plan),
    name=name,
    grid=grid,
    out_shape=out_shape,
    flops=2 * scores * products,
    bytes_accessed=triton.nbytes(arrays, out_shape),
    transcendentals=scores,
    num_warps=4 if rows <= 64 else 8,
    num_stages=num_stages,
    interpret=plan.interpret,
  )(arrays)
