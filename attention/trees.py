"""Trees over the tokens of a row: which nodes are siblings, level by level.

A tree is a tuple of levels, the leaves first. A level has *nodes*, [batch,
nodes, ...] in the order of the row, of which neighbours are a family: the
children of one node of the next level. A node of size 0 is empty: a place that
is there because shapes are static.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from attention import checks, tree_levels
from attention.tree_levels import Level


class Tree(abc.ABC):
  """What `regular` and `runs` make, for `hierarchical_attention`."""

  @abc.abstractmethod
  def planted(self, batch: int, length: int) -> "Planted":
    """Returns the tree over rows of tokens.

    Raises:
      ValueError: if it does not fit them.
    """


@dataclasses.dataclass(frozen=True)
class Planted:
  """A tree over rows of some batch and length.

  Attributes:
    levels: from the leaves to the children of the root.
    leaves: which leaves are tokens, booleans [batch or 1, leaves], of which
      there are at least as many as tokens; a NumPy array where it is known
      before the program runs.
    broken: which rows do not fit the sizes that were promised, [batch], or None
      if that is known to be none.
  """

  levels: tuple[Level, ...]
  leaves: np.ndarray | Array
  broken: Array | None = None


def regular(
  branchings: Sequence[int] = (), lengths: Int[Array, " batch"] | None = None
) -> Tree:
  """Windows of tokens, windows of windows, ..., and all that is left as one.

  With (16, 8) 16 neighbours are a family, 8 of these, and the rest are the
  children of the root. The number of tokens may be any.

  Args:
    branchings: children of a node, from the leaves up, at least 2 each; with
      none all leaves are siblings.
    lengths: number of tokens of each row that are not padding, at its end.

  Raises:
    ValueError: if a branching is below 2 or not a number.
  """
  for i, branching in enumerate(branchings):
    checks.whole(f"branchings[{i}]", branching, 2)
  return Regular(tuple(map(int, branchings)), lengths)


def runs(
  ids: Int[Array, "levels batch length"],
  *,
  apart: Int[Array, "batch length"] | None = None,
  widest: Sequence[int] | None = None,
) -> Tree:
  """Neighbours of the same number are a family: words, sentences, paragraphs.

  Args:
    ids: numbers of the nodes that a token is in, from the leaves' parents up.
      A run of equal numbers within one run of the level above is a node. A
      token whose first number is negative is padding.
    apart: numbers of the trees, if a row has several, as packed sequences.
    widest: for each level and the root, from the leaves' parents up, the most
      children that a node has: levels + 1 numbers, 0 where that is not known.
      Time is linear in the length where they are, and quadratic where not. For
      ids that are known before the program runs a smaller number is an error;
      for others all that such a row gives is NaN.

  Raises:
    ValueError: for arrays of other shapes or dtypes, or a number in `widest`
      that is too small.
  """
  checks.integers("ids", ids)
  if ids.ndim != 3:
    raise ValueError(
      f"ids has shape {ids.shape}; it must be [levels, batch, length]"
    )
  if apart is not None:
    checks.integers("apart", apart)
    if apart.shape != ids.shape[1:]:
      raise ValueError(
        f"apart has shape {apart.shape}; ids of shape {ids.shape} need "
        f"{ids.shape[1:]}"
      )
  widest = (0,) * (len(ids) + 1) if widest is None else tuple(widest)
  if len(widest) != len(ids) + 1:
    raise ValueError(
      f"widest is {widest}; ids of {len(ids)} levels need {len(ids) + 1} "
      "numbers, the last for the root"
    )
  for i, width in enumerate(widest):
    checks.whole(f"widest[{i}]", width, 0)
  tree = Runs(ids, apart, tuple(map(int, widest)))
  arrays = [x for x in (ids, apart) if x is not None]
  if any(widest) and not any(isinstance(x, jax.core.Tracer) for x in arrays):
    with jax.ensure_compile_time_eval():
      broken = np.asarray(tree.planted(*ids.shape[1:]).broken)
    if broken.any():
      raise ValueError(
        f"widest is {widest}; row {broken.argmax()} of ids has nodes with more "
        "children"
      )
  return tree


@dataclasses.dataclass(frozen=True)
class Regular(Tree):
  """See `regular`."""

  branchings: tuple[int, ...]
  lengths: Array | None

  def planted(self, batch, length):
    checks.lengths("lengths", self.lengths, batch)
    window = math.prod(self.branchings)
    nodes = window * max(1, -(-length // window))
    levels, left = [], nodes
    for branching in (*self.branchings, nodes // window):
      levels.append(tree_levels.Windows(branching, left))
      left //= branching
    leaves = np.arange(nodes)[None] < length
    if self.lengths is not None:
      leaves = leaves & (np.arange(nodes)[None] < self.lengths[:, None])
    return Planted(tuple(levels), leaves)


@dataclasses.dataclass(frozen=True)
class Runs(Tree):
  """See `runs`."""

  ids: Array
  apart: Array | None
  widest: tuple[int, ...]

  def planted(self, batch, length):
    if self.ids.shape[1:] != (batch, length):
      raise ValueError(
        f"ids has shape {self.ids.shape}; rows [{batch}, {length}] need "
        f"[levels, {batch}, {length}]"
      )
    counts = self._counts(length)
    real = jnp.ones((batch, length), bool)
    if len(self.ids):
      real = self.ids[0] >= 0
    numbers = self._numbers(real)
    levels, sizes, broken = [], real.astype(jnp.int32), jnp.zeros(batch, bool)
    own = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
    for i, width in enumerate(self.widest):
      # All tokens of a node are in the same node of the next level.
      parents = tree_levels.reduced(
        jax.ops.segment_max, numbers[i], own, counts[i]
      )
      parents = jnp.maximum(parents, 0)
      there = (sizes > 0).astype(jnp.int32)
      before = jnp.cumsum(there, axis=1) - there
      first = jax.lax.cummax(jnp.where(_begins(parents), before, 0), axis=1)
      level = tree_levels.Families(
        parents, counts[i + 1], width or counts[i], before - first
      )
      broken |= ((sizes > 0) & (level.places >= level.width)).any(axis=1)
      broken |= numbers[i].max(axis=1) >= counts[i + 1]
      levels.append(level)
      sizes, own = level.total(sizes), numbers[i]
    return Planted(tuple(levels), real, broken)

  def _numbers(self, real: Array) -> list[Array]:
    """Numbers of the nodes that a token is in, [batch, length] each.

    From the leaves' parents to the roots. Padding begins no node, and before it
    has ended there is none, so that the first node is number 0.
    """
    before = jnp.cumsum(real, axis=1) - real
    may_begin = real & (before > 0)
    begins = jnp.zeros(real.shape, bool)
    if self.apart is not None:
      begins = may_begin & _begins(self.apart)
    numbers = [jnp.cumsum(begins, axis=1)]
    for ids in self.ids[::-1]:
      begins |= may_begin & _begins(ids)
      numbers.insert(0, jnp.cumsum(begins, axis=1))
    return numbers

  def _counts(self, length: int) -> list[int]:
    """The most nodes of each level, from the leaves to the roots."""
    counts = [1 if self.apart is None else length]
    for width in self.widest[:0:-1]:
      counts.insert(0, min(length, counts[0] * width) if width else length)
    return [length, *counts]


def _begins(ids: Array) -> Array:
  """Where a number differs from the one before, [batch, length]."""
  changes = ids[:, 1:] != ids[:, :-1]
  return jnp.concatenate([jnp.ones_like(changes[:, :1]), changes], axis=1)
