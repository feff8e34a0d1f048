"""Tiles of the flash kernels that have several heads in them (`flash_few`)."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attention import mask_base
from attention.kernels import flash_plan as planning
from attention.kernels.tpu import LANES
from attention.mask_base import EMPTY, FULL
from attention.tiles import Operand, Tile


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FewPlan(planning.Plan):
  """A plan whose tiles have several heads in their rows and columns.

  Rows are (key head, query head of its group, query), columns are (token, key
  head), and the head of a tile is its first.

  Attributes:
    group: how many query heads share a key head and a value head.
    beside: how many key heads a tile has.
    parts: how many parts the keys are split into, each with its own copy of the
      rows.
  """

  raw: ClassVar[bool] = True

  group: int
  beside: int
  parts: int

  def keys(self, operand):
    # Modifications see the keys of each head, a mask the tokens.
    whole = operand < self.mod_operands
    return self.block_k if whole else self.block_k // self.beside

  def modified(self, score, tile, values):
    head, q_index = self._rows(tile)
    k_index, _ = _divide(tile.k_index, self.beside)
    of_heads = Tile(tile.batch, tile.head + head, q_index, k_index)
    score = super().modified(score, of_heads, values)
    if self.beside == 1:
      return score
    return jnp.where(self._same_head(tile, head), score, planning.MASKED)

  def visible(self, tile, values):
    head, q_index = self._rows(tile)
    k_index = tile.k_index
    if self.beside > 1:
      tokens = (1, self.block_k // self.beside)
      first, _ = _divide(k_index[:, :1], self.beside)
      k_index = first + jax.lax.broadcasted_iota(jnp.int32, tokens, 1)
    of_tokens = Tile(tile.batch, tile.head + head, q_index, k_index)
    seen = super().visible(of_tokens, values)
    if self.beside == 1:
      return seen
    seen = jnp.broadcast_to(seen, (self.block_q, tokens[1]))
    return _repeated(seen, self.beside) & self._same_head(tile, head)

  def _rows(self, tile: Tile) -> tuple[Array, Array]:
    """Returns the head, counted in the tile, and the query of each row.

    The head of each row takes the place of the head of the tile: what sees a
    tile is elementwise.
    """
    rows = self.beside * self.group * self.q_len
    _, row = _divide(tile.q_index, self.block_q)
    # Rows that fill up a tile are copies of the last.
    return _divide(jnp.minimum(row, rows - 1), self.q_len)

  def _same_head(self, tile: Tile, head: Array) -> Array:
    """Returns whether a row has its keys from the key head of a column."""
    _, k_head = _divide(tile.k_index, self.beside)
    return _divide(head, self.group)[0] == k_head


def _repeated(seen: Array, times: int) -> Array:
  """Repeats each column of booleans [rows, columns], as a product.

  Nothing else moves numbers along the lanes so far. LANES columns at a time,
  one under the other, so that the matrix of the product is there once.
  """
  rows, columns = seen.shape
  shape = (LANES, LANES * times)
  lane, place = (jax.lax.broadcasted_iota(jnp.int32, shape, i) for i in (0, 1))
  spread = (_divide(place, times)[0] == lane).astype(jnp.float32)
  seen = seen.astype(jnp.float32)
  seen = jnp.concatenate(
    [seen[:, i : i + LANES] for i in range(0, columns, LANES)], axis=0
  )
  # One product each and none to be rounded, in the dtype of one pass.
  wide = jnp.dot(
    seen.astype(jnp.bfloat16),
    spread.astype(jnp.bfloat16),
    preferred_element_type=jnp.float32,
  )
  wide = [wide[i : i + rows] for i in range(0, wide.shape[0], rows)]
  return jnp.concatenate(wide, axis=1) > 0.5


def sharing(q: Array, k: Array, v: Array) -> int:
  """Returns how many query heads share both a key head and a value head."""
  heads = q.shape[2]
  return math.gcd(heads // k.shape[2], heads // v.shape[2])


class Packing(NamedTuple):
  """How arrays [batch, length, heads, dim] become tiles of `FewPlan`.

  Attributes:
    q_len: queries of a head.
    group, beside, parts: as of `FewPlan`.
    block_q: rows of a tile.
    tokens: keys of each head in a tile.
  """

  q_len: int
  group: int
  beside: int
  parts: int
  block_q: int
  tokens: int

  @classmethod
  def of(cls, kernels, q, k, v, tokens) -> "Packing":
    batch, q_len, heads, _ = q.shape
    _, kv_len, k_heads, _ = k.shape
    beside = k_heads if kernels.HEADS_BESIDE else 1
    group = sharing(q, k, v)
    return cls(
      q_len,
      group,
      beside,
      kernels.few_parts(batch * heads // group, -(-kv_len // tokens)),
      kernels.few_rows(beside * group * q_len),
      tokens,
    )

  @property
  def heads(self) -> int:
    """How many query heads the rows of a tile have."""
    return self.beside * self.group

  def rows(self, x: Array) -> Array:
    """Fills up tiles with copies of the last row, and copies them for parts.

    [batch, tiles, heads * q_len, ...] -> [batch, tiles, parts * block_q, ...]
    """
    extra = self.block_q - x.shape[2]
    pads = [(0, extra if axis == 2 else 0) for axis in range(x.ndim)]
    x = jnp.pad(x, pads, mode="edge") if extra else x
    return jnp.concatenate([x] * self.parts, axis=2)

  def queries(self, q: Array, layout: str) -> Array:
    batch, _, _, dim = q.shape
    # [batch, heads, q_len, dim] -> [batch, tiles, heads in a tile * q_len, dim]
    q = q.swapaxes(1, 2).reshape(batch, -1, self.heads * self.q_len, dim)
    q = self.rows(q)
    return q if layout == "bhnd" else q.swapaxes(1, 2)

  def keys(self, x: Array, layout: str) -> Array:
    """Returns keys or values without a copy, unless they are less than a tile.

    [batch, kv_len, k_heads, dim] -> [batch, 1, kv_len * k_heads, dim] where
    heads are side by side.
    """
    if layout == "bnhd":
      return x
    if x.shape[1] < self.tokens:
      x = planning.padded(x, 1, self.tokens)
    return x.reshape(x.shape[0], 1, -1, x.shape[3])

  def operand(self, operand: Operand, repeats: bool) -> Operand:
    """Gives an operand the rows of a tile, and its columns if it `repeats`."""
    array, inner = operand.array, operand.inner
    lead = operand.axes[: len(operand.axes) - len(inner)]
    if inner == "k" and repeats and self.beside > 1:
      return Operand(jnp.repeat(array, self.beside, axis=-1), operand.axes)
    if inner == "k" or operand.axes in ("", "b"):
      return operand
    # To [batch or 1, heads or 1, q_len or 1], and all of the heads and queries.
    sizes = dict(zip(operand.axes, array.shape, strict=True))
    array = array.reshape([sizes.get(axis, 1) for axis in "bhq"])
    heads = sizes.get("h", self.heads)
    array = jnp.broadcast_to(array, (array.shape[0], heads, self.q_len))
    array = array.reshape(array.shape[0], -1, self.heads * self.q_len)
    array = self.rows(array)
    kept = [axis in lead for axis in "bh"]
    shape = [n for n, keep in zip(array.shape, kept, strict=False) if keep]
    return Operand(array.reshape(*shape, array.shape[2]), f"{lead}q")

  def lists(self, tiles: int, states: np.ndarray | Array | None = None) -> list:
    """Deals the tiles that are not empty to parts.

    Args:
      tiles: how many there are for each head.
      states: of all [batch or 1, heads or 1, 1, tiles]; all FULL if None.
    """
    if states is None:
      if self.parts == 1:
        return []
      states = np.full((1, 1, 1, tiles), FULL, np.int32)
    library = np if isinstance(states, np.ndarray) else jnp
    if states.shape[1] > 1:
      of_heads = states.reshape(
        states.shape[0], -1, self.heads, states.shape[3]
      )
      states = mask_base.states(
        (of_heads == EMPTY).all(axis=2, keepdims=True),
        (of_heads == FULL).all(axis=2, keepdims=True),
      )
    if self.parts > 1:
      turn = library.cumsum(states != EMPTY, axis=3) % self.parts
      part = library.arange(self.parts).reshape(1, 1, -1, 1)
      states = library.where(turn == part, states, EMPTY)
    return [jnp.asarray(planning.tile_list(states))]

  def joined(self, out: Array, lse: Array, weigh: str) -> tuple[Array, Array]:
    """Sums up parts, and gives each head its own.

    [batch, tiles, parts * block_q, dim] -> [batch, q_len, heads, dim], and
    [batch, tiles, parts * block_q] -> [batch, heads, q_len].
    """
    batch, _, _, dim = out.shape
    rows = self.heads * self.q_len
    split = (batch, -1, self.parts, self.block_q)
    out = out.reshape(*split, dim)[:, :, :, :rows]
    lse = lse.reshape(split)[..., :rows]
    if self.parts > 1 and weigh == "softmax":
      whole = jax.nn.logsumexp(lse, axis=2, keepdims=True)
      # Nobody saw a key: zero, not exp(-inf + inf).
      share = jnp.where(whole == -jnp.inf, 0.0, jnp.exp(lse - whole))
      out, lse = out * share[..., None], whole
    out, lse = out.sum(axis=2), lse[:, :, 0]
    out = out.reshape(batch, -1, self.q_len, dim).swapaxes(1, 2)
    return out, lse.reshape(batch, -1, self.q_len)


def _divide(x: Array, by: int) -> tuple[Array, Array]:
  """Returns quotient and remainder of positions, which are not negative."""
  if by == 1:
    return x, jnp.zeros_like(x)
  if by & (by - 1) == 0:
    return x >> (by.bit_length() - 1), x & (by - 1)
  by = jnp.full_like(x, by)
  return jax.lax.div(x, by), jax.lax.rem(x, by)
