"""A step of decoding that reads few of the keys and values of its cache."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from attention import checks, masks
from attention.dot_product import dot_product_attention

SELECTIONS = ("best", "random")


@dataclasses.dataclass(frozen=True)
class Budget:
  """Which tokens a query sees: the first, the last, and blocks between them.

  Of "Kinetics" (arXiv 2506.05333): what is between the first `sink` tokens and
  the last `local` ones is cut into blocks from its beginning, and what is left
  of it at its end is seen too. With one token a block it is the paper's top-k,
  with no blocks its local attention.

  Attributes:
    block: tokens of a block.
    blocks: how many blocks are seen.
    sink: tokens at the beginning that are always seen.
    local: tokens at the end that are always seen, the query's own included.
    selection: "best" takes the blocks of the largest mean score, "random" any.
  """

  block: int = 16
  blocks: int = 64
  sink: int = 4
  local: int = 16
  selection: str = "best"

  def __post_init__(self):
    for name, least in (("block", 1), ("blocks", 0), ("sink", 0), ("local", 1)):
      checks.whole(name, getattr(self, name), least)
    if self.selection not in SELECTIONS:
      raise ValueError(
        f"selection is {self.selection!r}; it must be one of {SELECTIONS}"
      )

  @property
  def needs_sums(self) -> bool:
    """Whether `block_sums` are what blocks are chosen by."""
    return self.block > 1 and self.blocks > 0 and self.selection == "best"

  def blocks_of(self, slots: int) -> int:
    """How many blocks a cache of so many tokens has at most."""
    return max(1, (slots - self.sink) // self.block)

  def whole_blocks(self, length: Array) -> Array:
    """How many blocks there are between the first and the last tokens."""
    middle = length - self.sink - self.local
    return jnp.maximum(middle, 0) // self.block


def sparse_decoding_attention(
  q: Float[Array, "batch 1 heads dim"],
  keys: Float[Array, "batch k_heads slots dim"],
  values: Float[Array, "batch v_heads slots v_dim"],
  *,
  start: Int[Array, " batch"],
  length: Int[Array, " batch"],
  budget: Budget,
  block_sums: Float[Array, "batch k_heads blocks dim"] | None = None,
  scale: float | None = None,
  seed: int = 0,
  implementation: str = "auto",
) -> Float[Array, "batch 1 heads v_dim"]:
  """Returns softmax attention of one query to what its budget lets it see.

  The query heads that share a head of keys share what they see: blocks are
  chosen by the mean over the block and over these heads of the scores before
  the softmax, and since these are products that is the product of the mean
  query and the mean key. So the keys of a block are read only if it is chosen.

  Args:
    q: the query of each row.
    keys: of a cache; token n of a row is in slot `start` + n. What is in other
      slots has to be finite.
    values: likewise; `v_heads` is a multiple of `k_heads`.
    start: the slot of each row's first token.
    length: the tokens of each row, the query's own included; a row of none gets
      zeros.
    budget: what a query sees.
    block_sums: sums of the keys of each block, float32, block n from token
      `budget.sink + n * budget.block` on; for a budget that `needs_sums`.
    scale: factor of the scores; dim ** -0.5 if None.
    seed: of the "random" selection, which differs from length to length.
    implementation: see `dot_product_attention`.

  Returns:
    [batch, 1, heads, v_dim] in the dtype of `q`.

  Raises:
    ValueError: if heads do not divide, or `block_sums` are missing.
  """
  batch, k_heads, slots, dim = keys.shape
  heads, v_heads = q.shape[2], values.shape[1]
  if heads % v_heads or v_heads % k_heads:
    raise ValueError(
      f"keys has {k_heads} heads and values {v_heads}; those of keys must "
      f"divide those of values, and these the {heads} of the queries"
    )
  if budget.needs_sums and block_sums is None:
    raise ValueError(f"block_sums is None; {budget} chooses blocks by them")
  ends = length[:, None, None]
  whole = budget.whole_blocks(ends)
  tail = jnp.where(ends > budget.sink, budget.sink + whole * budget.block, ends)
  # Runs of slots: their starts [batch, k_heads, runs], and which are seen.
  of_heads = jnp.zeros((1, k_heads, 1), jnp.int32)
  first = start[:, None, None] + of_heads
  pieces = [_Run(first, budget.sink, 0, jnp.minimum(ends, budget.sink))]
  if budget.blocks:
    pieces.append(
      _chosen(q, keys, block_sums, first, whole, budget, seed, length)
    )
  size = min(budget.local + budget.block - 1, slots)
  pieces.append(_Run(first + tail, size, tail, ends))

  def gathered(x: Array) -> Array:
    """[batch, own heads, slots, dim] -> [batch * k_heads, seen, share, dim]."""
    share = x.shape[1] // k_heads
    parts = [p.read(x, share) for p in pieces if p.size]
    x = jnp.concatenate(parts, axis=2)
    return x.reshape(batch * k_heads, share, *x.shape[2:]).swapaxes(1, 2)

  places = [p.places(first, slots) for p in pieces if p.size]
  places = jnp.concatenate(places, axis=2).reshape(batch * k_heads, -1)
  own = jnp.repeat(length - 1, k_heads)[:, None]
  out = dot_product_attention(
    q.reshape(batch * k_heads, 1, heads // k_heads, dim),
    gathered(keys),
    gathered(values),
    scale=scale,
    mask=masks.positions(own, places),
    implementation=implementation,
  )
  return out.reshape(batch, 1, heads, values.shape[3])


@dataclasses.dataclass(frozen=True)
class _Run:
  """Runs of slots side by side, of which some tokens are seen.

  Attributes:
    starts: [batch, k_heads, runs], the slot that each begins with.
    size: slots of each.
    least, below: the tokens [batch, k_heads or 1, runs or 1] of a row that are
      seen.
  """

  starts: Array
  size: int
  least: Array | int
  below: Array | int

  def _inside(self, slots: int) -> Array:
    return jnp.clip(self.starts, 0, slots - self.size)

  def read(self, x: Array, share: int) -> Array:
    """Returns [batch, heads, runs * size, dim] of [batch, heads, slots, dim].

    Args:
      x: keys or values.
      share: how many heads have the runs of one head of keys.
    """

    def one(x: Array, start: Array) -> Array:
      return lax.dynamic_slice_in_dim(x, start, self.size, axis=0)

    each: Callable = jax.vmap(one, (None, 0))
    starts = jnp.repeat(self._inside(x.shape[2]), share, axis=1)
    runs = jax.vmap(jax.vmap(each))(x, starts)
    return runs.reshape(*x.shape[:2], -1, x.shape[3])

  def places(self, first: Array, slots: int) -> Array:
    """Returns the token of each slot, [batch, k_heads, runs * size].

    -1 for what is not seen.
    """
    slot = self._inside(slots)[..., None] + jnp.arange(self.size).reshape(
      1, 1, 1, -1
    )
    token = slot - first[..., None]
    least, below = (
      jnp.asarray(x).reshape((*jnp.shape(x), *(1,) * (4 - jnp.ndim(x))))
      for x in (self.least, self.below)
    )
    token = jnp.where((token >= least) & (token < below), token, -1)
    return token.reshape(*token.shape[:2], -1)


def _chosen(q, keys, block_sums, first, whole, budget, seed, length) -> _Run:
  """Returns the blocks that are seen, of those that are whole."""
  batch, k_heads, slots, dim = keys.shape
  # Where candidates begin, as tokens.
  if budget.block == 1:
    candidates = jnp.arange(slots).reshape(1, 1, -1) - first
  else:
    count = budget.blocks_of(slots)
    candidates = budget.sink + budget.block * jnp.arange(count).reshape(
      1, 1, -1
    )
  shape = (batch, k_heads, candidates.shape[-1])
  if budget.selection == "random":
    score = jax.vmap(lambda n: _draw(seed, n, shape[1:]))(length)
  else:
    mean = q.reshape(batch, k_heads, -1, dim).astype(jnp.float32).mean(axis=2)
    means = keys if budget.block == 1 else block_sums
    score = jnp.einsum(
      "bhd,bhnd->bhn",
      mean.astype(means.dtype),
      means,
      preferred_element_type=jnp.float32,
    )
  end = budget.sink + whole * budget.block
  there = (candidates >= budget.sink) & (candidates < end)
  score = jnp.where(there, score, -jnp.inf)
  kept, best = lax.top_k(score, min(budget.blocks, shape[-1]))
  candidates = jnp.broadcast_to(candidates, (batch, *candidates.shape[1:]))
  candidates = jnp.broadcast_to(candidates, shape)
  begin = jnp.take_along_axis(candidates, best, axis=2)
  # Of what is no block nothing is seen.
  below = jnp.where(kept > -jnp.inf, begin + budget.block, begin)
  return _Run(first + begin, budget.block, begin, below)


def _draw(seed: int, length: Array, shape: tuple[int, ...]) -> Array:
  key = jax.random.fold_in(jax.random.key(seed), length)
  return jax.random.uniform(key, shape)
