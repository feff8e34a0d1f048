"""Modifications of scores: what happens between q k^T and the mask.

Each is a `ScoreMod`; a sequence of them is applied in order. All are exact in
float32 and differentiable in the arrays they carry.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attention import checks, relative_position, tiles
from attention.tiles import Operand, Tile


class ScoreMod(abc.ABC):
  """A change of scores; a frozen dataclass registered as a pytree."""

  def operands(self) -> tuple[Operand, ...]:
    """Returns the arrays whose parts `modify` takes as values.

    Kernels ask for them while they are built, so that nothing may be computed
    here.
    """
    return ()

  @abc.abstractmethod
  def modify(self, score: Array, tile: Tile, *values: Array) -> Array:
    """Returns the new scores of a tile, [rows, columns] in float32."""


def bias(array: Float[Array, "..."]) -> ScoreMod:
  """Adds an array that broadcasts to [batch, heads, q_len, kv_len].

  Raises:
    ValueError: if `array` has more than four axes or is not floating point.
  """
  checks.floating("array", array)
  if array.ndim > 4:
    raise ValueError(
      f"array has shape {array.shape}; it must broadcast to [batch, heads, "
      "q_len, kv_len]"
    )
  array = array.reshape((1,) * (4 - array.ndim) + array.shape)
  return Bias(tiles.squeezed(array, "bhqk"))


def factored_bias(
  q_factor: Float[Array, "*q_batch q_len q_heads rank"],
  k_factor: Float[Array, "*k_batch kv_len k_heads rank"],
) -> ScoreMod:
  """Adds q_factor k_factor^T, which is never formed as a whole.

  FlashBias (arXiv 2505.12044, equation 3): a bias of rank R costs R more
  channels of the product of queries and keys. The scale of the scores is not
  applied to it. Keep the factors in float32: products of positions cancel.

  Args:
    q_factor: [batch, q_len, heads, rank]; batch and heads may be of size one,
      and batch may be left out.
    k_factor: [batch, kv_len, heads, rank], likewise.

  Raises:
    ValueError: if the ranks differ.
  """
  checks.floating("q_factor", q_factor)
  checks.floating("k_factor", k_factor)
  if q_factor.shape[-1] != k_factor.shape[-1]:
    raise ValueError(
      f"k_factor has shape {k_factor.shape}; q_factor of shape "
      f"{q_factor.shape} needs the same rank, {q_factor.shape[-1]}"
    )
  q_factor, k_factor = (
    x[None] if x.ndim == 3 else x for x in (q_factor, k_factor)
  )
  return FactoredBias(q_factor, k_factor)


def alibi_slopes(heads: int) -> Float[Array, " heads"]:
  """Returns 2^(-8 (h + 1) / heads) for each head h (arXiv 2108.12409)."""
  checks.whole("heads", heads, 1)
  return 2.0 ** (-8.0 * jnp.arange(1, heads + 1) / heads)


def alibi(
  slopes: Float[Array, " heads"], *, symmetric: bool = False
) -> ScoreMod:
  """Adds slope * (k - q), the linear bias of ALiBi (arXiv 2108.12409).

  Args:
    slopes: [heads], see `alibi_slopes`.
    symmetric: whether to add -slope * |k - q| instead, for keys on both sides;
      that form has no exact factors.
  """
  checks.floating("slopes", slopes)
  checks.flag("symmetric", symmetric)
  return Alibi(slopes, symmetric)


def alibi_factors(
  slopes: Float[Array, " heads"], q_len: int, kv_len: int
) -> ScoreMod:
  """Returns `alibi(slopes)` as a factored bias of rank 2.

  slope * [-q, 1] . [1, k]: example 3.4 of FlashBias (arXiv 2505.12044) with the
  sign of ALiBi.
  """
  checks.floating("slopes", slopes)
  checks.whole("q_len", q_len, 0)
  checks.whole("kv_len", kv_len, 0)
  q, k = (jnp.arange(n, dtype=jnp.float32) for n in (q_len, kv_len))
  q_factor = jnp.stack([-q, jnp.ones_like(q)], axis=-1)[:, None]
  k_factor = jnp.stack([jnp.ones_like(k), k], axis=-1)[:, None]
  return factored_bias(q_factor * slopes[None, :, None], k_factor)


def squared_distance(
  q_points: Float[Array, "*batch q_len space"],
  k_points: Float[Array, "*batch kv_len space"],
  weight: Float[Array, "*batch q_len heads"] | None = None,
) -> ScoreMod:
  """Adds -weight * |q_point - k_point|^2 as a factored bias.

  FlashBias (arXiv 2505.12044), equation 4, in the form of its code: rank
  space + 2, factors [2 x, -|x|^2, 1] and [y, 1, -|y|^2].

  Args:
    q_points: places of the queries, [batch, q_len, space].
    k_points: places of the keys, [batch, kv_len, space].
    weight: one number for each query and head, [batch, q_len, heads]; one if
      None.
  """
  checks.floating("q_points", q_points)
  checks.floating("k_points", k_points)
  if weight is not None:
    checks.floating("weight", weight)
  # In float32, for squares of bfloat16 points cancel badly.
  q_points, k_points = (x.astype(jnp.float32) for x in (q_points, k_points))
  q_norm, k_norm = (
    jnp.sum(x**2, axis=-1, keepdims=True) for x in (q_points, k_points)
  )
  q_factor = jnp.concatenate(
    [2 * q_points, -q_norm, jnp.ones_like(q_norm)], axis=-1
  )[..., None, :]
  k_factor = jnp.concatenate(
    [k_points, jnp.ones_like(k_norm), -k_norm], axis=-1
  )[..., None, :]
  if weight is not None:
    q_factor = q_factor * weight[..., None]
  return factored_bias(q_factor, k_factor)


def svd_factors(
  array: Float[Array, "heads q_len kv_len"], rank: int
) -> ScoreMod:
  """Returns a dense bias as a factored one, its best of that rank.

  FlashBias (arXiv 2505.12044), section 3.2: b = U S V^T, factors U sqrt(S) and
  V sqrt(S), for a trained table that no longer changes.

  Args:
    array: [heads, q_len, kv_len].
    rank: how many singular values to keep; `rank_for_energy` proposes one.
  """
  checks.floating("array", array)
  checks.whole("rank", rank)
  if not 1 <= rank <= min(array.shape[1:]):
    raise ValueError(
      f"rank is {rank}; a bias of shape {array.shape} has ranks from 1 to "
      f"{min(array.shape[1:])}"
    )
  u, s, vh = jnp.linalg.svd(array.astype(jnp.float32), full_matrices=False)
  root = jnp.sqrt(s[:, None, :rank])
  q_factor = u[:, :, :rank] * root
  k_factor = vh[:, :rank].swapaxes(1, 2) * root
  return factored_bias(q_factor.swapaxes(0, 1), k_factor.swapaxes(0, 1))


def rank_for_energy(
  array: Float[Array, "heads q_len kv_len"], energy: float = 0.995
) -> int:
  """Returns the least rank that keeps a share of every head's squared bias.

  Raises:
    ValueError: unless `energy` is above 0 and at most 1.
  """
  checks.floating("array", array)
  checks.share("energy", energy, positive=True)
  s = jnp.linalg.svd(array.astype(jnp.float32), compute_uv=False)
  kept = jnp.cumsum(s**2, axis=-1) / jnp.sum(s**2, axis=-1, keepdims=True)
  # Rounding may leave all of the energy a little short of one.
  return int(jnp.max(jnp.sum(kept[:, :-1] < energy, axis=-1))) + 1


def relative_positions(
  table: Float[Array, "heads offsets"], q_len: int, kv_len: int
) -> ScoreMod:
  """Adds table[head, k - q + max_distance], farther offsets clipped.

  Args:
    table: [heads, 2 * max_distance + 1]; the middle is offset zero.
    q_len: number of queries.
    kv_len: number of keys.

  Raises:
    ValueError: if the table has an even number of offsets.
  """
  checks.floating("table", table)
  checks.whole("q_len", q_len, 0)
  checks.whole("kv_len", kv_len, 0)
  _, offsets = table.shape
  if offsets % 2 == 0:
    raise ValueError(
      f"table has shape {table.shape}; it must be [heads, 2 * max_distance + 1]"
    )
  offset = jnp.arange(kv_len)[None, :] - jnp.arange(q_len)[:, None]
  index = jnp.clip(offset + offsets // 2, 0, offsets - 1)
  return bias(table[:, index])


def relative_positions_2d(
  table: Float[Array, "heads offsets offsets"],
) -> ScoreMod:
  """Adds the bias of a square window: `attention.relative_position_bias`."""
  return bias(relative_position.relative_position_bias(table))


def soft_cap(cap: float) -> ScoreMod:
  """Replaces the score by cap * tanh(score / cap) (Gemma 2, arXiv 2408.00118).

  Raises:
    ValueError: if `cap` is not positive.
  """
  checks.number("cap", cap, above=0.0)
  return SoftCap(cap)


def function(
  f: Callable[..., Array], arrays: Mapping[str, Array] | None = None
) -> ScoreMod:
  """A modification from a plain function.

  Args:
    f: `f(score, batch, head, q_index, k_index, *values)` returns the new score.
      It must be elementwise: all arguments broadcast against each other.
    arrays: what the function reads besides, differentiated; the key says what
      the axes are, a letter an axis in this order: "b" batch, "h" heads, "q"
      queries, "k" keys. A key may go on after a colon to tell arrays with the
      same axes apart, as in "h:slope". The function takes the values in the
      order of the mapping.
  """
  if not callable(f):
    raise ValueError(f"f is {f!r}; it must be a function of a score")
  arrays = {} if arrays is None else arrays
  return Function(
    tuple(
      Operand(array, axes.partition(":")[0]) for axes, array in arrays.items()
    ),
    f,
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bias(ScoreMod):
  """Adds an array with some of the axes batch, heads, q_len and kv_len."""

  operand: Operand

  def operands(self):
    return (self.operand,)

  def modify(self, score, tile, *values):
    return score + values[0].astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FactoredBias(ScoreMod):
  """Adds the product of the factors, [batch, length, heads, rank] each."""

  q_factor: Array
  k_factor: Array

  def operands(self):
    q = _keep_inner(self.q_factor.transpose(0, 2, 1, 3), "qr")
    k = _keep_inner(self.k_factor.transpose(0, 2, 3, 1), "rk")
    return q, k

  def modify(self, score, tile, *values):
    q_factor, k_factor = (value.astype(jnp.float32) for value in values)
    return score + jnp.dot(
      q_factor,
      k_factor,
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.float32,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alibi(ScoreMod):
  """Adds slope * (k - q), or -slope * |k - q|."""

  slopes: Array
  symmetric: bool = dataclasses.field(metadata={"static": True})

  def operands(self):
    return (Operand(self.slopes, "h"),)

  def modify(self, score, tile, *values):
    offset = (tile.k_index - tile.q_index).astype(jnp.float32)
    if self.symmetric:
      offset = -jnp.abs(offset)
    return score + values[0].astype(jnp.float32) * offset


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftCap(ScoreMod):
  """cap * tanh(score / cap)."""

  cap: float = dataclasses.field(metadata={"static": True})

  def modify(self, score, tile, *values):
    return self.cap * jnp.tanh(score / self.cap)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scale(ScoreMod):
  """Multiplies by an array with some of the axes batch, heads and q_len."""

  operand: Operand

  def operands(self):
    return (self.operand,)

  def modify(self, score, tile, *values):
    return score * values[0].astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Function(ScoreMod):
  """A plain function of the score, the indices and the values."""

  arrays: tuple[Operand, ...]
  f: Callable[..., Array] = dataclasses.field(metadata={"static": True})

  def operands(self):
    return self.arrays

  def modify(self, score, tile, *values):
    return self.f(score, *tile, *values)


def _keep_inner(array: Array, inner: str) -> Operand:
  """Drops batch and heads where they are of size one, never the inner axes."""
  lead = "".join(
    axis for axis, size in zip("bh", array.shape, strict=False) if size > 1
  )
  shape = tuple(size for size in array.shape[:2] if size > 1)
  return Operand(array.reshape(shape + array.shape[2:]), lead + inner)
