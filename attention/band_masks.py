"""Masks that compare the positions of the query and of the key."""

import dataclasses
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from attention import checks
from attention.mask_base import Mask, none_between, states
from attention.tiles import Operand

# A number, or one for all or for each row of the batch that is known when the
# program runs.
Whole = int | Int[Array, "..."]
# Beyond all positions; the sum of four is an int32.
_FAR = 2**29


def causal(offset: Whole = 0) -> Mask:
  """Each query sees itself and what is before it: k <= q + offset.

  Args:
    offset: position of the first query among the keys, for queries that go on
      from a cache: a number, or integers [] or [batch], which may be traced.

  Raises:
    ValueError: if `offset` is none of these.
  """
  return Band(None, _whole("offset", offset))


def sliding_window(
  before: Whole, after: Whole = 0, *, offset: Whole = 0
) -> Mask:
  """Each query sees `before` keys before it, itself, and `after` behind it.

  Each argument is a number, which kernels know before the program runs, or
  integers [] or [batch], which may be traced.

  Args:
    before: how many earlier keys are seen, not counting the query's own.
    after: how many later keys are seen; 0 makes the window causal.
    offset: position of the first query among the keys.

  Raises:
    ValueError: if one is none of these, or the number `before` or `after` is
      negative.
  """
  before, after = _whole("before", before, 0), _whole("after", after, 0)
  offset = _whole("offset", offset)
  return Band(offset - before, offset + after)


def positions(
  q_positions: Int[Array, "batch q_len"],
  kv_positions: Int[Array, "batch kv_len"],
  before: Whole | None = None,
  after: Whole | None = 0,
) -> Mask:
  """Queries see keys by where both are in the sequence, in whatever order.

  The key at position p is seen from q - before to q + after. A negative
  position is none: of padding, or of an empty slot of a cache. Such a key is
  seen by no query, and such a query sees no key.

  Args:
    q_positions: the position of each query, [batch, q_len], below 2^29.
    kv_positions: the position of each key, [batch, kv_len].
    before: how many earlier positions are seen; all if None. It and `after` may
      be numbers or, also traced, integers [] or [batch].
    after: how many later positions are seen; all if None.

  Raises:
    ValueError: if positions are not integers with two axes, or `before` or
      `after` is no whole number, or a negative one.
  """
  arrays = {"q_positions": q_positions, "kv_positions": kv_positions}
  for name, x in arrays.items():
    checks.integers(name, x)
    if x.ndim != 2:
      raise ValueError(
        f"{name} has shape {x.shape}; it must be [batch, length]"
      )
  before, after = (
    None if x is None else _whole(name, x, 0)
    for name, x in (("before", before), ("after", after))
  )
  return Band(
    None if before is None else -before,
    after,
    *(jnp.asarray(x, jnp.int32) for x in arrays.values()),
  )


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Band(Mask):
  """lower <= k - q <= upper for the positions k and q.

  Attributes:
    lower, upper: None for no bound, or a number, of which tiles are known
      before the program runs, or an array [] or [batch].
    q_positions, kv_positions: None where positions are the indices, or arrays
      [batch, length], negative for what sees nothing and is seen by nothing.
  """

  lower: int | Array | None
  upper: int | Array | None
  q_positions: Array | None = None
  kv_positions: Array | None = None

  def tree_flatten(self):
    # A number stays a number when the mask is an argument of what is traced.
    fields = (self.lower, self.upper, self.q_positions, self.kv_positions)
    known = tuple(x if isinstance(x, int) else None for x in fields)
    arrays = tuple(None if isinstance(x, int) else x for x in fields)
    return arrays, known

  @classmethod
  def tree_unflatten(cls, known, arrays):
    pairs = zip(known, arrays, strict=True)
    return cls(
      *(array if number is None else number for number, array in pairs)
    )

  def operands(self):
    bounds = (
      Operand(x, "b" * getattr(x, "ndim", 0))
      for x in (self.lower, self.upper)
      if not isinstance(x, int | None)
    )
    if self.q_positions is None:
      return tuple(bounds)
    return (
      *bounds,
      Operand(self.q_positions, "bq"),
      Operand(self.kv_positions, "bk"),
    )

  def visible(self, tile, *values):
    values = iter(values)
    lower, upper = (
      x if isinstance(x, int | None) else next(values)
      for x in (self.lower, self.upper)
    )
    q, k = (tile.q_index, tile.k_index)
    if self.q_positions is not None:
      q, k = values
    offset = k - q
    seen = jnp.full(offset.shape, True)
    if lower is not None:
      seen &= offset >= lower
    if upper is not None:
      seen &= offset <= upper
    if self.q_positions is not None:
      seen &= jnp.minimum(q, k) >= 0
    return seen

  def tile_states(self, q_len, kv_len, block_q, block_k):
    q = _Range.of(self.q_positions, q_len, block_q)
    k = _Range.of(self.kv_positions, kv_len, block_k)
    # [batch or 1, 1, q_tiles, k_tiles]
    q = _Range(*(x[:, None, :, None] for x in q))
    k = _Range(*(x[:, None, None, :] for x in k))
    least, most = k.least - q.most, k.most - q.least
    empty, full = ~(q.some & k.some), q.every & k.every
    if self.lower is not None:
      lower = _spread(self.lower, 4)
      empty, full = empty | (most < lower), full & (least >= lower)
    if self.upper is not None:
      upper = _spread(self.upper, 4)
      empty, full = empty | (least > upper), full & (most <= upper)
    # One token against all is exact, though positions come in any order.
    if block_k == 1 and block_q >= q_len:
      empty = empty | self._alone(k.least, self.q_positions, False)
    elif block_q == 1 and block_k >= kv_len:
      empty = empty | self._alone(q.least, self.kv_positions, True)
    return states(empty, full)

  def _alone(self, own, others, of_queries: bool):
    """Returns which positions [batch, 1, ...] have none of `others` in reach.

    Where one side is open or all positions are there, the range of the others
    says it already.
    """
    if others is None or self.lower is None or self.upper is None:
      return np.zeros((1,) * own.ndim, bool)
    lower, upper = _spread(self.lower, 2), _spread(self.upper, 2)
    if not of_queries:
      lower, upper = -upper, -lower
    # [batch, length]
    places = own.reshape(own.shape[0], -1)
    # What is nowhere is out of reach.
    others = jnp.where(others < 0, _FAR, others)
    alone = none_between(places + lower, places + upper, others)
    return alone.reshape(own.shape)


class _Range(NamedTuple):
  """What is known of the positions in each tile, [batch or 1, tiles].

  Attributes:
    least, most: the first and the last that are not negative.
    some, every: whether there is such a one, and whether all are.
  """

  least: Array | np.ndarray
  most: Array | np.ndarray
  some: Array | np.ndarray
  every: Array | np.ndarray

  @classmethod
  def of(cls, positions: Array | None, length: int, block: int) -> "_Range":
    """Returns those of [batch, length], or of indices if None."""
    if positions is None:
      first = np.arange(0, length, block)[None, :]
      there = np.ones(first.shape, bool)
      return cls(first, np.minimum(first + block, length) - 1, there, there)
    batch, _ = positions.shape
    tiles = jnp.pad(positions, ((0, 0), (0, -length % block)), mode="edge")
    tiles = tiles.reshape(batch, -1, block)
    there = tiles >= 0
    return cls(
      jnp.where(there, tiles, _FAR).min(axis=-1),
      tiles.max(axis=-1),
      there.any(axis=-1),
      there.all(axis=-1),
    )


def _whole(name: str, value: Whole, least: int | None = None) -> Whole:
  """Returns an int or an int32 array [] or [batch]."""
  if isinstance(value, numbers.Integral) and not isinstance(value, bool):
    checks.whole(name, value, least)
    return int(value)
  if not hasattr(value, "dtype"):
    raise ValueError(
      f"{name} is {value!r}; it must be a whole number, or integers [] or "
      "[batch]"
    )
  checks.integers(name, value)
  if value.ndim > 1:
    raise ValueError(
      f"{name} has shape {value.shape}; it must be a number, [] or [batch]"
    )
  return jnp.asarray(value, jnp.int32)


def _spread(bound: Whole, axes: int) -> Whole:
  """Gives an array [] or [batch] more axes."""
  return (
    bound if isinstance(bound, int) else bound.reshape(-1, *[1] * (axes - 1))
  )
