"""Linear attention among all tokens on NVIDIA GPUs: the memory of a head.

Keys make it (`linear_gpu_make`), queries read it (`linear_gpu_read`), each with
a gradient. Keys, values, gates and queries are read where they lie, and the
normalised output is written, all once. A head at a time would leave most of a
GPU idle; so several programs share the tokens of a head, each with a memory of
its own, to be summed.

A memory is [features, channels of values] in whole tiles, and beside it, in a
tile of SIDE columns, the sum of the features; where the normalizer reads the
mean of values, their sum is a row below.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention import linear_normalizers
from attention.kernels import linear_gpu_tiles as tiles
from attention.kernels import triton

# Programs that share the tokens of a call: two for each multiprocessor of an
# H100. More would write more memories.
PROGRAMS = 264
# Tokens that a memory takes in at once: with 64 of them and 96 channels, the
# compiler has more numbers at hand than registers.
TAKEN = 32
# Columns beside the memory: rows of it then begin where 16 bytes do.
SIDE = 16


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known before the call.

  Attributes:
    feature_map: phi.
    normalizer: what becomes of the sums.
    full: whether products are full float32.
    interpret: whether Pallas's interpreter runs the kernels.
  """

  feature_map: Callable
  normalizer: linear_normalizers.LinearNormalizer
  full: bool
  interpret: bool

  @property
  def means(self) -> bool:
    """Whether the normalizer reads the mean of values."""
    return isinstance(self.normalizer, linear_normalizers.Subtraction)

  def dot(self, a, b, **transposed):
    return triton.dot(a, b, full=self.full, **transposed)


def call(
  plan, kernel, name, *, grid, out_shape, products, num_warps=8
) -> Callable:
  """Returns the function of arrays that runs `kernel` on a grid.

  Args:
    plan: the plan.
    kernel: function of references, and of `plan`.
    name: its name in a profile.
    grid: numbers of programs.
    out_shape: a tree of `jax.ShapeDtypeStruct`.
    products: multiply-adds.
    num_warps: groups of 32 threads in a program. With eight, a memory of 96 x
      96 is 36 of a thread's 255 registers.
  """

  def run(*arrays):
    return triton.pallas_call(
      functools.partial(kernel, plan=plan),
      name=name,
      grid=grid,
      out_shape=out_shape,
      flops=2 * products,
      bytes_accessed=triton.nbytes(arrays, out_shape),
      transcendentals=0,
      num_warps=num_warps,
      num_stages=2,
      interpret=plan.interpret,
    )(*arrays)

  return run


def count_parts(heads: int, length: int) -> int:
  """Returns how many programs share the tokens of one of `heads` heads."""
  chunks = pl.cdiv(length, TAKEN)
  parts = min(chunks, max(1, PROGRAMS // heads))
  # None without a chunk.
  return pl.cdiv(chunks, pl.cdiv(chunks, parts))


def share_of(part, ref, memory_ref, limit):
  """Returns the first chunk of a program's share, and the one behind it."""
  chunks = pl.cdiv(ref.shape[1], TAKEN)
  size = pl.cdiv(chunks, memory_ref.shape[2])
  start = part * size
  stop = jnp.minimum(start + size, chunks)
  if limit is not None:
    stop = jnp.minimum(stop, lax.div(limit + (TAKEN - 1), TAKEN))
  return start, stop


def shape_of(plan, k, v, parts) -> jax.ShapeDtypeStruct:
  """Returns the shape of memories [batch, heads, parts, rows, columns]."""
  batch, _, heads, _ = k.shape
  sides = tiles.width(k) + plan.means, tiles.width(v) + SIDE
  return jax.ShapeDtypeStruct((batch, heads, parts, *sides), jnp.float32)


def nothing(plan, k_ref, v_ref):
  """Returns a memory of no keys: tiles by row, sums of features and values."""
  rows, columns = (
    [size for _, size in tiles.pieces(ref)] for ref in (k_ref, v_ref)
  )

  def zeros(*shape):
    return jnp.zeros(shape, jnp.float32)

  return (
    [[zeros(row, column) for column in columns] for row in rows],
    [zeros(row) for row in rows],
    [zeros(column) for column in columns if plan.means],
  )


def added(plan, memory, keys, values):
  """Adds the sum over tokens of keys times values to each tile."""
  return [
    [
      x + plan.dot(key, value, transpose_a=True)
      for x, value in zip(line, values, strict=True)
    ]
    for line, key in zip(memory, keys, strict=True)
  ]


def summed(sums, parts):
  """Adds the sum over tokens of each piece [rows, size] to what is there."""
  return [x + part.sum(0) for x, part in zip(sums, parts, strict=True)]


def save(plan, ref, at, k_ref, v_ref, memory, weights, totals):
  """Writes a memory as it was described above."""
  rows, columns = tiles.pieces(k_ref), tiles.pieces(v_ref)
  side = ref.shape[-1] - SIDE, SIDE
  first = jnp.arange(SIDE)[None, :] == 0
  for row, line, weight in zip(rows, memory, weights, strict=True):
    for column, x in zip(columns, line, strict=True):
      triton.store(ref, tile_index(at, row, column), x)
    x = jnp.where(first, weight[:, None], 0.0)
    triton.store(ref, tile_index(at, row, side), x)
  if plan.means:
    zeros = jnp.zeros((SIDE,), jnp.float32)
    last = ref.shape[-2] - 1
    for (start, size), x in zip(
      [*columns, side], [*totals, zeros], strict=True
    ):
      triton.store(ref, (*at, last, start + jnp.arange(size)), x)


def tile_index(at, row, column):
  """Returns the index of a tile of a memory."""
  return (
    *at,
    row[0] + jnp.arange(row[1])[:, None],
    column[0] + jnp.arange(column[1])[None, :],
  )


def load_weights(ref, at, row):
  """Returns the sum of features [size] of a piece."""
  index = row[0] + jnp.arange(row[1])
  return triton.load(ref, (*at, index, ref.shape[-1] - SIDE))


def load_totals(plan, ref, at, column):
  """Returns the sum of values [1, size] of a piece, zero where none is kept."""
  if not plan.means:
    return jnp.zeros((1, column[1]), jnp.float32)
  index = column[0] + jnp.arange(column[1])
  return triton.load(ref, (*at, ref.shape[-2] - 1, index))[None, :]


def limit_of(ref, lengths_ref, batch, chunk):
  """Returns how many tokens count, None if all do of each chunk."""
  if lengths_ref is not None:
    return triton.load(lengths_ref, (batch,))
  length = ref.shape[1]
  return jnp.asarray(length, jnp.int32) if length % chunk else None


def kept_rows(rows, limit):
  """Returns which tokens count, [rows, 1], None if all do."""
  return None if limit is None else (rows < limit)[:, None]


def load_mapped(plan, ref, batch, rows, head, kept):
  """Returns features of tokens in pieces, and their pullbacks."""
  pairs = [
    jax.vjp(
      lambda x, mask=mask: tiles.features_of(x, plan.feature_map, mask, kept), x
    )
    for x, mask in tiles.load_raw(ref, batch, rows, head)
  ]
  return [x for x, _ in pairs], [pull for _, pull in pairs]


def load_gate(ref, batch, rows, head, kept):
  """Returns the gate of some tokens [rows, 1], None for one."""
  if ref is None:
    return None
  index, tails = gate_index(ref, batch, rows, head)
  gate = triton.load(ref, index, tails=tails).astype(jnp.float32)
  return tiles.only(gate, kept)


def gate_index(ref, batch, rows, head):
  """Returns the index [rows, 1] of a gate, and where it ends beyond."""
  index = (
    batch if ref.shape[0] > 1 else 0,
    rows[:, None],
    head if ref.shape[2] > 1 else 0,
  )
  return index, triton.tail(1, ref.shape[1], rows.size)


def gated(parts, gate):
  """Returns pieces times their gate, which is one if None."""
  return parts if gate is None else [x * gate for x in parts]
