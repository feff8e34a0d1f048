"""What the flash kernels are told besides arrays, and how arrays are made fit.

Everything here is the same for TPU and GPU.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attention import mask_base, scores
from attention.mask_base import EMPTY, Mask
from attention.scores import ScoreMod
from attention.tiles import Operand, Tile

# Name of what attention gave, its output and its statistics, for policies of
# `jax.checkpoint`.
ATTENDED = "attended"
# Added to a tile number of the list: tile * LIST_BASE + state.
LIST_BASE = 4
# The score of a masked key, far below every running maximum, which starts at
# LEAST: exp(MASKED - LEAST) is zero, so that a row of masked keys sums to zero.
MASKED = -1e30
LEAST = -1e29


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
  """What is known about a call before it runs.

  Attributes:
    mods: the score modifications, in order.
    mask: the mask as it is on mixed tiles; None if there are no mixed tiles.
    axes: the axes of the operands of `mods` and then of `mask`.
    mod_operands: how many of the operands are those of `mods`.
    booleans: which operands are booleans, which kernels get as int8.
    scale: factor of the scores.
    weigh: "softmax", "sigmoid" or "ones".
    q_len, kv_len: lengths without padding.
    block_q, block_k: sides of a tile.
    listed: whether kernels get lists of tiles; otherwise all tiles are full.
    precision: of the products.
    interpret: whether Pallas's interpreter runs the kernel.
    raw: whether keys and values come as they lie: they may end within a tile,
      and hold anything where the mask hides them.
    parts: in how many parts, to be summed up, the output of a query comes.
  """

  raw: ClassVar[bool] = False
  parts: ClassVar[int] = 1

  mods: tuple[ScoreMod, ...]
  mask: Mask | None
  axes: tuple[str, ...]
  mod_operands: int
  booleans: tuple[bool, ...]
  scale: float
  weigh: str
  q_len: int
  kv_len: int
  block_q: int
  block_k: int
  listed: bool
  precision: jax.lax.Precision | None
  interpret: bool

  def inner(self, operand: int) -> str:
    """Returns the axes of an operand after batch and heads."""
    return self.axes[operand].lstrip("b").lstrip("h")

  def keys(self, operand: int) -> int:
    """Returns how many keys of a tile an operand along keys tells apart."""
    del operand
    return self.block_k

  def modified(self, score: Array, tile: Tile, values: Sequence[Array]):
    """Applies the score modifications to a scaled tile of scores."""
    taken = 0
    for mod in self.mods:
      count = len(mod.operands())
      score = mod.modify(score, tile, *values[taken : taken + count])
      taken += count
    return score

  def visible(self, tile: Tile, values: Sequence[Array]) -> Array:
    """Returns the mask on a mixed tile."""
    return self.mask.visible(tile, *values[self.mod_operands :])


def all_operands(
  mods: Sequence[ScoreMod], mask: Mask | None
) -> tuple[Operand, ...]:
  """Returns the operands of the modifications and then those of the mask."""
  of_mods = [operand for mod in mods for operand in mod.operands()]
  return (*of_mods, *(() if mask is None else mask.operands()))


def plan(
  kind: type[Plan],
  dtype: jnp.dtype,
  mods: Sequence[ScoreMod],
  mask: Mask | None,
  operands: Sequence[Operand],
  **fields,
) -> Plan:
  """Returns a plan with what follows from its slots and with other `fields`.

  Args:
    kind: class of the plan.
    dtype: of queries, keys and values.
    mods: the score modifications, in order.
    mask: the mask as it is on mixed tiles, or None.
    operands: those of `mods`, then those of `mask`.
    **fields: all other fields.
  """
  return kind(
    mods=tuple(mods),
    mask=mask,
    axes=tuple(o.axes for o in operands),
    mod_operands=sum(len(mod.operands()) for mod in mods),
    booleans=tuple(o.array.dtype == bool for o in operands),
    precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
    **fields,
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inside(Mask):
  """Hides what pads keys, and queries, to whole tiles.

  Attributes:
    q_len: queries that are none of the padding; None if all may see keys. Their
      outputs are dropped, so that it is the same but for score modifications:
      these may make NaN of padded operands, and zero times that is NaN in the
      gradients of keys, values and other operands.
    kv_len: keys that are none.
  """

  q_len: int | None = dataclasses.field(metadata={"static": True})
  kv_len: int = dataclasses.field(metadata={"static": True})

  def visible(self, tile, *values):
    keys = tile.k_index < self.kv_len
    return keys if self.q_len is None else keys & (tile.q_index < self.q_len)

  def tile_states(self, q_len, kv_len, block_q, block_k):
    rows = np.arange(-(-q_len // block_q)) + 1
    columns = np.arange(-(-kv_len // block_k)) + 1
    full = (columns * block_k <= self.kv_len)[None, :]
    if self.q_len is not None:
      full = full & (rows * block_q <= self.q_len)[:, None]
    full = np.broadcast_to(full, (len(rows), len(columns)))
    return mask_base.states(np.zeros(full.shape, bool), full)


def tile_list(
  states: np.ndarray | Array, most: int | None = None
) -> np.ndarray | Array:
  """Lists for each row of tiles those that are not empty, in order.

  Args:
    states: [batch, heads, rows, columns], batch and heads possibly of size one.
    most: the most tiles of a row that are not empty, if it is known.

  Returns:
    [batch, heads, rows, longest] of column * LIST_BASE + state; rows with
    fewer tiles repeat their last column as EMPTY, which costs no memory
    traffic. If the states are traced, `longest` is `most`, or else the number
    of columns.
  """
  static = isinstance(states, np.ndarray)
  library = np if static else jnp
  empty = states == EMPTY
  # Stable: the tiles of a row stay in order, so that sums are always the same.
  order = library.argsort(empty, axis=-1, stable=True)
  count = (~empty).sum(axis=-1, keepdims=True)
  # As many steps as the fullest row has; only NumPy knows before it runs.
  if static:
    order = order[..., : max(int(count.max()), 1)]
  elif most is not None:
    order = order[..., :most]
  place = library.arange(order.shape[-1])[None, None, None]
  last = library.clip(count - 1, 0, order.shape[-1] - 1)
  last = library.take_along_axis(order, last, -1)
  state = library.take_along_axis(states, order, -1)
  listed = library.where(
    place < count, order * LIST_BASE + state, last * LIST_BASE + EMPTY
  )
  return listed.astype(np.int32)


def leading_factors(
  mods: Sequence[ScoreMod],
) -> tuple[list[scores.FactoredBias], list[ScoreMod]]:
  """Returns the factored biases among the first that add, and the others."""
  factors, rest = [], []
  for index, mod in enumerate(mods):
    if not isinstance(mod, scores.FactoredBias | scores.Bias):
      return factors, [*rest, *mods[index:]]
    (factors if isinstance(mod, scores.FactoredBias) else rest).append(mod)
  return factors, rest


def with_factors(
  q: Array, k: Array, scale: float, factors: Sequence[scores.FactoredBias]
) -> tuple[Array, Array]:
  """Turns factored biases into more channels of queries and keys.

  The sum of products that the matrix unit makes anyway then holds the bias,
  which is exact for float32 as it stands. For narrower inputs each factor is
  split into three parts of their width, whose six products that matter carry
  float32.

  Args:
    q: [batch, q_len, heads, dim].
    k: [batch, kv_len, k_heads, dim].
    scale: factor of the scores, by which the factors are divided.
    factors: the biases.
  """
  batch, _, heads, _ = q.shape
  for bias in factors:
    q_factor = _over_heads(bias.q_factor / scale, batch, heads)
    k_factor = _over_heads(bias.k_factor, batch, heads)
    if q.dtype != jnp.float32:
      q_factor, k_factor = _split(q_factor, k_factor, q.dtype)
    k = jnp.repeat(k, heads // k.shape[2], axis=2)
    q = jnp.concatenate([q, q_factor.astype(q.dtype)], axis=-1)
    k = jnp.concatenate([k, k_factor.astype(k.dtype)], axis=-1)
  return q, k


def _over_heads(factor: Array, batch: int, heads: int) -> Array:
  factor = factor.astype(jnp.float32)
  return jnp.broadcast_to(
    factor, (batch, factor.shape[1], heads, factor.shape[3])
  )


def _split(a: Array, b: Array, dtype) -> tuple[Array, Array]:
  """Returns channels in `dtype` whose products sum to a b in float32.

  Only the first parts carry a gradient: it is that of the whole.
  """
  a_parts, b_parts = [], []
  for x, parts in ((a, a_parts), (b, b_parts)):
    # Each part is what the ones before have left, 8 bits of it in bfloat16.
    for _ in range(3):
      part = x.astype(dtype)
      parts.append(part)
      x = x - part.astype(jnp.float32)
  # The other three products are below the last bit of float32.
  pairs = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0))
  return (
    jnp.concatenate([a_parts[i] for i, _ in pairs], axis=-1),
    jnp.concatenate([b_parts[j] for _, j in pairs], axis=-1),
  )


def arranged(x: Array, layout: str, block: int) -> Array:
  """Brings [batch, length, heads, dim] into the layout of a kernel.

  Args:
    x: array.
    layout: "bhnd" or "bnhd".
    block: the length is padded to a multiple of it.
  """
  if layout == "bhnd":
    x = x.swapaxes(1, 2)
  return padded(x, layout.index("n"), block)


def padded(x: Array, axis: int, block: int) -> Array:
  """Pads an axis with zeros to a multiple of `block`."""
  extra = -x.shape[axis] % block
  if not extra:
    return x
  return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])


def padded_operand(operand: Operand, block_q: int, block_k: int) -> Array:
  """Returns the array of an operand in whole tiles; booleans become int8."""
  array = jnp.asarray(operand.array)
  if array.dtype == bool:
    array = array.astype(jnp.int8)
  for axis, letter in enumerate(operand.axes):
    if letter in "qk":
      array = padded(array, axis, block_q if letter == "q" else block_k)
  return array


def without_shared(gradient: Array, axes: str) -> Array:
  """Sums a gradient [batch, heads, ...] over what its operand shares."""
  shared = tuple(i for i, axis in enumerate("bh") if axis not in axes)
  return jnp.sum(gradient, axis=shared)
