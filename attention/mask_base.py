"""What a mask is, and how masks combine.

See `attention.masks` for the masks themselves.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from attention import checks, tiles
from attention.tiles import Operand, Tile

# The state of a tile. MIXED may be said of any tile, at the price of speed.
EMPTY, MIXED, FULL = 0, 1, 2


class Mask(abc.ABC):
  """Which keys a query may see; a frozen dataclass registered as a pytree."""

  def operands(self) -> tuple[Operand, ...]:
    """Returns the arrays whose parts `visible` takes as values.

    Kernels ask for them while they are built, so that nothing may be computed
    here.
    """
    return ()

  @abc.abstractmethod
  def visible(self, tile: Tile, *values: Array) -> Array:
    """Returns booleans that broadcast to the tile: True where a key is seen."""

  def tile_states(
    self, q_len: int, kv_len: int, block_q: int, block_k: int
  ) -> np.ndarray | Array:
    """Returns EMPTY, MIXED or FULL for each tile of block_q x block_k scores.

    Args:
      q_len: number of queries; the last tile may reach beyond.
      kv_len: number of keys.
      block_q: queries in a tile, any number.
      block_k: keys in a tile, any number.

    Returns:
      Integers that broadcast to [batch, heads, q_tiles, k_tiles], with all four
      axes. A NumPy array where they are known before the program runs.
    """
    tiles = (-(-q_len // block_q), -(-kv_len // block_k))
    return np.full((1, 1, *tiles), MIXED, np.int32)

  def tile_multiples(self) -> tuple[int, int]:
    """Returns sizes that tiles of a kernel must divide; 0 for any size."""
    return 0, 0

  def most_tiles(self, block_k: int) -> int | None:
    """Returns the most tiles of so many keys that a row of tiles sees.

    None if it is not known before the program runs, or may be all of them.
    """
    del block_k
    return None

  def in_mixed_tile(self) -> "Mask | None":
    """Returns a mask with the same value on MIXED tiles, None if always True.

    Raises:
      NotImplementedError: if there is none that a kernel can evaluate.
    """
    return self

  def check(self, batch: int, heads: int, q_len: int, kv_len: int) -> None:
    """Raises ValueError unless the mask fits scores of these sizes.

    And unless it is boolean: where the reference would take any number but zero
    for a key that is seen, `~` and kernels would not.
    """
    for operand in self.operands():
      operand.check(
        f"an array of the mask, {type(self).__name__},",
        batch,
        heads,
        q_len,
        kv_len,
      )
    seen = tiles.on_one_score(
      lambda _, tile, *values: self.visible(tile, *values),
      self.operands(),
      scores=False,
    )
    if seen.dtype != bool:
      raise ValueError(
        f"a mask, {type(self).__name__}, gives {seen.dtype}; it must give "
        "booleans, True where a key is seen"
      )

  def idle(
    self, q_len: int, kv_len: int
  ) -> tuple[np.ndarray | Array, np.ndarray | Array]:
    """Returns which queries see no key, and which keys no query sees.

    What the mask does not know is False. Rows and columns of scores are tiles
    too, so that this costs no look at each score, unless an array has them all.

    Returns:
      Booleans that broadcast to [batch, heads, q_len] and [batch, heads,
      kv_len]. NumPy arrays where they are known before the program runs.
    """
    rows = self.tile_states(q_len, kv_len, 1, kv_len)
    columns = self.tile_states(q_len, kv_len, q_len, 1)
    return rows[..., 0] == EMPTY, columns[:, :, 0] == EMPTY

  def reordered(
    self, order: np.ndarray, k_order: np.ndarray | None = None
  ) -> "Mask":
    """Returns the mask of tokens that come in another order: P M P^T.

    Args:
      order: the numbers of the queries in their order, all or some
        (`attention.permutations`).
      k_order: those of the keys; as the queries' if None.

    Raises:
      ValueError: if the mask knows tokens by their places.
    """
    raise ValueError(
      f"a mask, {type(self).__name__}, cannot be reordered; those can that "
      "have an array of what each token is"
    )

  def dense(
    self, q_len: int, kv_len: int, *, batch: int = 1, heads: int = 1
  ) -> Bool[Array, "batch heads q_len kv_len"]:
    """Returns the mask as an array [batch, heads, q_len, kv_len].

    Raises:
      ValueError: if the mask does not fit these sizes.
    """
    return self._over_all(batch, heads, q_len, kv_len)

  def count(
    self, q_len: int, kv_len: int, *, batch: int = 1, heads: int = 1
  ) -> Float[Array, "batch heads q_len"]:
    """Returns how many keys each query sees, float32 [batch, heads, q_len].

    Raises:
      ValueError: if the mask does not fit these sizes.
    """
    return self._over_all(
      batch,
      heads,
      q_len,
      kv_len,
      reduce=lambda seen: jnp.sum(seen, axis=-1, dtype=jnp.float32),
    )

  def _over_all(self, *shape: int, **options) -> Array:
    """Evaluates the mask; see `tiles.over_all_scores`."""
    self.check(*shape)
    return tiles.over_all_scores(
      lambda _, tile, *values: self.visible(tile, *values),
      self.operands(),
      shape,
      **options,
    )

  def __and__(self, other: "Mask") -> "Mask":
    checks.instance("what follows &", other, Mask, "attention.masks")
    return _Both(self, other)

  def __or__(self, other: "Mask") -> "Mask":
    checks.instance("what follows |", other, Mask, "attention.masks")
    return _Either(self, other)

  def __invert__(self) -> "Mask":
    return _Not(self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(Mask):
  """Booleans with some of the axes batch, heads, q_len and kv_len."""

  operand: Operand

  def operands(self):
    return (self.operand,)

  def visible(self, tile, *values):
    return values[0]

  def reordered(self, order, k_order=None):
    array = self.operand.array
    orders = {"q": order, "k": order if k_order is None else k_order}
    for axis, letter in enumerate(self.operand.axes):
      if letter in orders:
        array = array.take(orders[letter], axis=axis)
    return Dense(Operand(array, self.operand.axes))

  def tile_states(self, q_len, kv_len, block_q, block_k):
    array = tiles.unsqueezed(self.operand, "bhqk")
    sizes = (*array.shape[:2], q_len, kv_len)
    array = jnp.broadcast_to(array, sizes)
    pads = (-q_len % block_q, -kv_len % block_k)
    rows, columns = (
      (q_len + pads[0]) // block_q,
      (kv_len + pads[1]) // block_k,
    )

    def reduce(reduction, beyond):
      padded = jnp.pad(
        array,
        ((0, 0), (0, 0), (0, pads[0]), (0, pads[1])),
        constant_values=beyond,
      )
      parts = padded.reshape(*sizes[:2], rows, block_q, columns, block_k)
      return reduction(parts, axis=(3, 5))

    return states(empty=~reduce(jnp.any, False), full=reduce(jnp.all, True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks(Mask):
  """An explicit list of visible blocks of scores.

  Attributes:
    table: booleans that broadcast to [batch, heads, q_blocks, k_blocks], with
      all four axes; NumPy, so that kernels know it before the program runs.
    block_q: queries in a block.
    block_k: keys in a block.
    most: the most blocks that a row of blocks sees, where that is known of a
      table that is not.
  """

  table: np.ndarray | Array
  block_q: int = dataclasses.field(metadata={"static": True})
  block_k: int = dataclasses.field(metadata={"static": True})
  most: int | None = dataclasses.field(default=None, metadata={"static": True})

  def check(self, batch, heads, q_len, kv_len):
    blocks = (-(-q_len // self.block_q), -(-kv_len // self.block_k))
    fits = (batch, heads, *blocks)
    shape = self.table.shape
    if shape[2:] != blocks or any(
      have not in (1, want) for have, want in zip(shape, fits, strict=True)
    ):
      raise ValueError(
        f"table of visible blocks has shape {shape}; {q_len} x {kv_len} scores "
        f"in blocks of {self.block_q} x {self.block_k} need {fits}, the first "
        "two possibly of size one"
      )

  def visible(self, tile, *values):
    # Only the reference comes here: kernels use tiles within one block.
    table = jnp.asarray(self.table)
    batch = jnp.minimum(tile.batch, table.shape[0] - 1)
    head = jnp.minimum(tile.head, table.shape[1] - 1)
    rows = tile.q_index[:, 0] // self.block_q
    columns = tile.k_index[0] // self.block_k
    return table[batch, head][rows][:, columns]

  def tile_states(self, q_len, kv_len, block_q, block_k):
    self.check(*self.table.shape[:2], q_len, kv_len)
    library = np if isinstance(self.table, np.ndarray) else jnp
    # [..., i, j] is the number of visible blocks above row i, left of column j.
    sums = library.cumsum(self.table.astype(np.int32), axis=2)
    sums = library.cumsum(sums, axis=3)
    sums = library.pad(sums, ((0, 0), (0, 0), (1, 0), (1, 0)))
    top, bottom = _blocks_of_tiles(q_len, block_q, self.block_q)
    left, right = _blocks_of_tiles(kv_len, block_k, self.block_k)
    # First along the axis that leaves less: for tiles of one query each row of
    # blocks would become as many rows as it has queries.
    rows_first = len(top) * sums.shape[3] <= len(left) * sums.shape[2]
    between = [(2, top, bottom), (3, left, right)]
    visible = sums
    for axis, first, last in between if rows_first else between[::-1]:
      visible = library.take(visible, last, axis) - library.take(
        visible, first, axis
      )
    area = (bottom - top)[:, None] * (right - left)[None, :]
    return states(visible == 0, visible == area[None, None])

  def tile_multiples(self):
    return self.block_q, self.block_k

  def most_tiles(self, block_k):
    most = self.most
    if isinstance(self.table, np.ndarray) and self.table.size:
      most = int(self.table.sum(axis=-1).max())
    # Tiles lie within blocks (`tile_multiples`).
    return None if most is None else most * (self.block_k // block_k)

  def in_mixed_tile(self):
    return None


def _blocks_of_tiles(
  length: int, tile: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first block that each tile meets, and the first behind it."""
  first = np.arange(0, length, tile)
  last = np.minimum(first + tile, length) - 1
  return first // block, last // block + 1


@dataclasses.dataclass(frozen=True)
class _Pair(Mask):
  """What a & b and a | b have in common."""

  a: Mask
  b: Mask

  def operands(self):
    return (*self.a.operands(), *self.b.operands())

  def check(self, *sizes):
    self.a.check(*sizes)
    self.b.check(*sizes)

  def tile_multiples(self):
    return tuple(
      int(np.gcd(*sizes))
      for sizes in zip(
        self.a.tile_multiples(), self.b.tile_multiples(), strict=True
      )
    )

  def in_mixed_tile(self):
    """Drops from a & b & ... the masks that are one value on any tile.

    A mixed tile of a conjunction is one that block lists among its parts show
    as a whole, and one of a | b | ... is one that they hide as a whole, so that
    what is left decides.
    """
    kind = type(self)
    rest = [part for part in _parts(self, kind) if not isinstance(part, Blocks)]
    if any(any(part.tile_multiples()) for part in rest):
      raise NotImplementedError(
        "a block list stands deeper than the outermost & or | of the mask"
      )
    return functools.reduce(kind, rest) if rest else None

  def reordered(self, order, k_order=None):
    return type(self)(*(x.reordered(order, k_order) for x in (self.a, self.b)))

  def _visible(self, tile: Tile, values: Sequence[Array]):
    """Evaluates both with what is theirs of the values."""
    first = len(self.a.operands())
    return (
      self.a.visible(tile, *values[:first]),
      self.b.visible(tile, *values[first:]),
    )

  def _tile_states(self, *sizes: int):
    return self.a.tile_states(*sizes), self.b.tile_states(*sizes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Both(_Pair):
  """a & b."""

  def visible(self, tile, *values):
    a, b = self._visible(tile, values)
    return a & b

  def tile_states(self, *sizes):
    return _minimum(*self._tile_states(*sizes))

  def most_tiles(self, block_k):
    known = [part.most_tiles(block_k) for part in (self.a, self.b)]
    return min((n for n in known if n is not None), default=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Either(_Pair):
  """a | b."""

  def visible(self, tile, *values):
    a, b = self._visible(tile, values)
    return a | b

  def tile_states(self, *sizes):
    a, b = self._tile_states(*sizes)
    return FULL - _minimum(FULL - a, FULL - b)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Not(Mask):
  """~a."""

  a: Mask

  def operands(self):
    return self.a.operands()

  def check(self, *sizes):
    self.a.check(*sizes)

  def visible(self, tile, *values):
    return ~self.a.visible(tile, *values)

  def reordered(self, order, k_order=None):
    return _Not(self.a.reordered(order, k_order))

  def tile_states(self, *sizes):
    return FULL - self.a.tile_states(*sizes)

  def tile_multiples(self):
    return self.a.tile_multiples()

  def in_mixed_tile(self):
    inner = self.a.in_mixed_tile()
    return None if inner is None else _Not(inner)


def _parts(mask: Mask, kind: type) -> list[Mask]:
  if isinstance(mask, kind):
    return _parts(mask.a, kind) + _parts(mask.b, kind)
  return [mask]


def _minimum(a, b):
  static = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
  return (np if static else jnp).minimum(a, b)


def states(empty, full):
  """Returns the states of tiles as integers with four axes."""
  library = np if isinstance(empty, np.ndarray) else jnp
  states = library.where(empty, EMPTY, library.where(full, FULL, MIXED))
  states = states.astype(np.int32)
  return states.reshape((1,) * (4 - states.ndim) + states.shape)


# So many intervals or numbers that each is compared with all, as of a token
# that is decoded, sooner than the others are sorted.
_FEW = 16


def none_between(first: Array, last: Array, among: Array) -> Array:
  """Returns which intervals hold none of a row's numbers.

  Args:
    first: the first number of each interval, [batch or 1, n].
    last: the last one, alike.
    among: the numbers in any order, [batch, m].

  Returns:
    Booleans [batch, n].
  """
  shape = (among.shape[0], first.shape[1])
  if min(first.shape[1], among.shape[1]) <= _FEW:
    numbers = among[:, None, :]
    within = (numbers >= first[..., None]) & (numbers <= last[..., None])
    return jnp.broadcast_to(~within.any(axis=-1), shape)

  def row(first, last, among):
    among = jnp.sort(among)
    # The least that is not below the interval, or the largest of all.
    place = jnp.searchsorted(among, first, method="sort")
    next_one = jnp.take(among, place, mode="clip")
    return (next_one < first) | (next_one > last)

  return jax.vmap(row)(
    jnp.broadcast_to(first, shape), jnp.broadcast_to(last, shape), among
  )
