"""The levels of a tree: nodes, of which neighbours are siblings."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class Level(abc.ABC):
  """The nodes of a level and their families.

  Queries are cut into blocks, and each block sees the keys around it.

  Attributes:
    width: the most nodes of a family.
    places: number of each node among its siblings, [batch or 1, nodes].
    parents: number of the parent of each node, [batch, nodes], or None if a
      block is a family.
    offset: place of a block's first query among the keys around the block.
  """

  width: int
  places: np.ndarray | Array
  parents: Array | None
  offset: int

  @abc.abstractmethod
  def total(self, x: Array) -> Array:
    """Sums [batch, nodes, ...] over each family, to [batch, parents, ...]."""

  @abc.abstractmethod
  def spread(self, x: Array) -> Array:
    """Gives [batch, parents, ...] to all children, as [batch, nodes, ...]."""

  @abc.abstractmethod
  def blocks(self, x: Array) -> Array:
    """Cuts [batch, nodes, ...] into [batch, blocks, queries, ...]."""

  @abc.abstractmethod
  def around(self, x: Array) -> Array:
    """Returns [batch, blocks, keys, ...], with zeros beyond the row."""

  @abc.abstractmethod
  def joined(self, x: Array) -> Array:
    """Undoes `blocks`."""


@dataclasses.dataclass(frozen=True)
class Windows(Level):
  """Families of `width` nodes each, of `nodes` nodes."""

  width: int
  nodes: int
  parents = None
  offset = 0

  @property
  def places(self):
    return np.arange(self.nodes)[None] % self.width

  def total(self, x):
    return self.blocks(x).sum(axis=2)

  def spread(self, x):
    return jnp.repeat(x, self.width, axis=1)

  def blocks(self, x):
    return x.reshape(x.shape[0], -1, self.width, *x.shape[2:])

  def around(self, x):
    return self.blocks(x)

  def joined(self, x):
    return x.reshape(x.shape[0], self.nodes, *x.shape[3:])


@dataclasses.dataclass(frozen=True)
class Families(Level):
  """Neighbours with the same parent.

  Attributes:
    parents: see `Level`.
    count: number of parents.
    width: the most children of a parent.
    places: see `Level`.
  """

  parents: Array
  count: int
  width: int
  places: Array

  @property
  def offset(self):
    return self.width if self._cut else 0

  @property
  def _cut(self) -> bool:
    """Whether blocks are worth it: each sees three times its width."""
    return 3 * self.width < self.parents.shape[1]

  def total(self, x):
    return reduced(jax.ops.segment_sum, x, self.parents, self.count)

  def spread(self, x):
    index = self.parents.reshape(self.parents.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)

  def blocks(self, x):
    if not self._cut:
      return x[:, None]
    rest = -x.shape[1] % self.width
    x = jnp.pad(x, ((0, 0), (0, rest), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(x.shape[0], -1, self.width, *x.shape[2:])

  def around(self, x):
    x = self.blocks(x)
    if not self._cut:
      return x
    none = jnp.zeros_like(x[:, :1])
    before = jnp.concatenate([none, x[:, :-1]], axis=1)
    after = jnp.concatenate([x[:, 1:], none], axis=1)
    return jnp.concatenate([before, x, after], axis=2)

  def joined(self, x):
    x = x.reshape(x.shape[0], -1, *x.shape[3:])
    return x[:, : self.parents.shape[1]]


def reduced(reduce, x: Array, groups: Array, count: int) -> Array:
  """Reduces [batch, n, ...] by groups [batch, n], to [batch, count, ...]."""
  return jax.vmap(lambda x, groups: reduce(x, groups, num_segments=count))(
    x, groups
  )
