"""Masks: which keys a query may see. They combine with &, | and ~.

A mask knows its value on a tile of positions, from which the reference makes
the dense mask, and whether a whole tile is empty or full, so that a kernel
skips what is empty and does not mask what is full (`mask_base.Mask`).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from attention import checks, tiles
from attention.band_masks import causal, positions, sliding_window
from attention.grid_masks import inward_window, radial_blocks, radial_tokens
from attention.group_masks import scale_dit_blocks, scale_dit_tokens
from attention.mask_base import (
  EMPTY,
  FULL,
  MIXED,
  Blocks,
  Dense,
  Mask,
  none_between,
  states,
)
from attention.share_masks import frame_window, share_window
from attention.tiles import Operand

__all__ = [
  "EMPTY",
  "FULL",
  "MIXED",
  "Mask",
  "blocks",
  "causal",
  "dense",
  "frame_window",
  "function",
  "inward_window",
  "padding",
  "positions",
  "prefix",
  "radial_blocks",
  "radial_tokens",
  "scale_dit_blocks",
  "scale_dit_tokens",
  "segments",
  "share_window",
  "sliding_window",
]


def prefix(length: int | Int[Array, " batch"]) -> Mask:
  """All queries see the first `length` keys.

  `causal() | prefix(n)` is the mask of a prefix language model.

  Args:
    length: a number, or one for each batch element, [batch].
  """
  if not hasattr(length, "dtype"):
    checks.whole("length", length, 0)
  return _first_keys("length", jnp.asarray(length), (0, 1))


def padding(lengths: Int[Array, " batch"]) -> Mask:
  """Hides the keys behind the end of each sequence.

  Args:
    lengths: how many keys are real, [batch].
  """
  return _first_keys("lengths", lengths, (1,))


def segments(
  q_segments: Int[Array, "batch q_len"],
  kv_segments: Int[Array, "batch kv_len"] | None = None,
) -> Mask:
  """Queries see the keys of their own segment, as in packed sequences.

  Args:
    q_segments: the segment of each query, [batch, q_len].
    kv_segments: the segment of each key, [batch, kv_len]; as the queries' if
      None.
  """
  kv_segments = q_segments if kv_segments is None else kv_segments
  for name, x in (("q_segments", q_segments), ("kv_segments", kv_segments)):
    checks.integers(name, x)
    if x.ndim != 2:
      raise ValueError(
        f"{name} has shape {x.shape}; it must be [batch, length]"
      )
  return Segments(q_segments, kv_segments)


def dense(array: Bool[Array, "..."]) -> Mask:
  """A mask of booleans that broadcast to [batch, heads, q_len, kv_len]."""
  checks.booleans("array", array)
  if array.ndim > 4:
    raise ValueError(
      f"array has shape {array.shape}; it must broadcast to [batch, heads, "
      "q_len, kv_len]"
    )
  array = jnp.asarray(array)
  array = array.reshape((1,) * (4 - array.ndim) + array.shape)
  return Dense(tiles.squeezed(array, "bhqk"))


def function(visible: Callable[..., Array]) -> Mask:
  """A mask from a plain function.

  Args:
    visible: `visible(batch, head, q_index, k_index)` returns booleans; the
      indices are integer arrays that broadcast against each other, and the
      function must be elementwise.
  """
  if not callable(visible):
    raise ValueError(
      f"visible is {visible!r}; it must be a function, and arrays go into dense"
    )
  return Function(visible)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FirstKeys(Mask):
  """k < length; `length` is a scalar or [batch]."""

  length: Array

  def operands(self):
    return (Operand(self.length, "b" * self.length.ndim),)

  def visible(self, tile, *values):
    return tile.k_index < values[0]

  def tile_states(self, q_len, kv_len, block_q, block_k):
    k_first, k_last = (x[None, None, None] for x in _tile_ends(kv_len, block_k))
    length = self.length.reshape(-1, 1, 1, 1)
    shape = (length.shape[0], 1, -(-q_len // block_q), k_first.size)
    return jnp.broadcast_to(
      states(empty=k_first >= length, full=k_last < length), shape
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
  """The segments of the query and the key are the same."""

  q_segments: Array
  kv_segments: Array

  def operands(self):
    return (Operand(self.q_segments, "bq"), Operand(self.kv_segments, "bk"))

  def visible(self, tile, *values):
    q_segments, kv_segments = values
    return q_segments == kv_segments

  def tile_states(self, q_len, kv_len, block_q, block_k):
    q_least, q_most = _tile_range(self.q_segments, block_q)
    k_least, k_most = _tile_range(self.kv_segments, block_k)
    q_least, q_most = q_least[:, None, :, None], q_most[:, None, :, None]
    k_least, k_most = k_least[:, None, None, :], k_most[:, None, None, :]
    empty = (k_most < q_least) | (k_least > q_most)
    # One token against all is exact, though segments come in any order.
    if block_k == 1 and block_q >= q_len:
      empty = none_between(self.kv_segments, self.kv_segments, self.q_segments)[
        :, None, None, :
      ]
    elif block_q == 1 and block_k >= kv_len:
      empty = none_between(self.q_segments, self.q_segments, self.kv_segments)[
        :, None, :, None
      ]
    return states(
      empty=empty,
      full=(q_least == k_most) & (k_least == q_most) & (q_least == q_most),
    )


def blocks(
  table: Bool[Array | np.ndarray, "..."],
  block_q: int,
  block_k: int | None = None,
  *,
  most: int | None = None,
) -> Mask:
  """A mask from an explicit table of visible blocks.

  Args:
    table: booleans that broadcast to [batch, heads, q_blocks, k_blocks].
    block_q: queries in a block.
    block_k: keys in a block; as `block_q` if None.
    most: the most blocks that a row of the table sees, so that kernels walk no
      further where the table is known only when the program runs. What a row
      sees beyond is left out by them.

  Raises:
    ValueError: if a block has no tokens or the table more than four axes.
  """
  block_k = block_q if block_k is None else block_k
  checks.booleans("table", table)
  checks.whole("block_q", block_q)
  checks.whole("block_k", block_k)
  if most is not None:
    checks.whole("most", most, 1)
  if min(block_q, block_k) < 1 or not 2 <= np.ndim(table) <= 4:
    raise ValueError(
      f"table has shape {np.shape(table)} and blocks {block_q} x {block_k}; "
      "the table must be [batch, heads, q_blocks, k_blocks], the first two "
      "possibly left out, and blocks at least 1 x 1"
    )
  if not isinstance(table, jax.core.Tracer):
    table = np.asarray(table)
  return Blocks(
    table.reshape((1,) * (4 - table.ndim) + table.shape), block_q, block_k, most
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Function(Mask):
  """A mask from a plain function of the indices."""

  f: Callable[..., Array] = dataclasses.field(metadata={"static": True})

  def visible(self, tile, *values):
    return self.f(*tile)


def _tile_ends(length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first and the last position of each tile."""
  first = np.arange(0, length, block)
  return first, np.minimum(first + block, length) - 1


def _tile_range(x: Array, block: int) -> tuple[Array, Array]:
  """Returns the least and the largest of each `block` of [batch, length]."""
  batch, length = x.shape
  x = jnp.pad(x, ((0, 0), (0, -length % block)), mode="edge")
  x = x.reshape(batch, -1, block)
  return x.min(axis=-1), x.max(axis=-1)


def _first_keys(name: str, length: Array, ndims: tuple[int, ...]) -> FirstKeys:
  checks.integers(name, length)
  if length.ndim not in ndims:
    fits = {0: "a number", 1: "[batch]"}
    raise ValueError(
      f"{name} has shape {length.shape}; it must be "
      f"{' or '.join(fits[n] for n in ndims)}"
    )
  return FirstKeys(jnp.asarray(length, jnp.int32))
