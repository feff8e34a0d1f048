"""Graphs of atoms: who is near whom, in arrays of a fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.spherical_harmonics import spherical_harmonics


class Graph(NamedTuple):
  """The neighbours of each atom, in places that are filled from the first on.

  An atom without a neighbour is its own, in place 0, without direction: so
  every atom that is there attends to something. B are structures, A atoms of
  each, M places for neighbours.

  Attributes:
    index: numbers of the neighbours, int32 [B, A, M]; in empty places the
      atom's own.
    count: how many places are filled, int32 [B, A]; 0 for padding.
    real: whether a place has another atom, bool [B, A, M].
    distance: to it, float32 [B, A, M]; 0 where there is none.
    direction: from it to the atom, of length one, float32 [B, A, M, 3]; zeros
      where there is none.
  """

  index: jax.Array
  count: jax.Array
  real: jax.Array
  distance: jax.Array
  direction: jax.Array

  @property
  def filled(self) -> jax.Array:
    """Which places are filled, bool [B, A, M]."""
    places = jnp.arange(self.index.shape[-1])
    return places[None, None] < self.count[..., None]

  def of_sources(self, x: jax.Array) -> jax.Array:
    """Looks up what neighbours have: from [B, A, C] to [B, A, M, C]."""
    return jax.vmap(lambda own, index: own[index])(x, self.index)

  def mean(self, x: jax.Array) -> jax.Array:
    """Averages [B, A, M, C] over the filled places: [B, A, C]."""
    filled = self.filled
    total = jnp.where(filled[..., None], x, 0).sum(2)
    # As the reference has it.
    count = filled.sum(-1, keepdims=True).astype(jnp.float32) + 1e-5
    return (total / count).astype(x.dtype)


def neighbors(
  positions: jax.Array,
  present: jax.Array,
  *,
  cutoff: float,
  max_neighbors: int,
) -> Graph:
  """Finds the nearest atoms of each, all distances at once.

  That is quadratic in A and without periodic images: for molecules and
  clusters. Which atoms are neighbours has no derivative, and an energy jumps
  where one crosses the cutoff; among neighbours at equal distance, of which
  there are too many, the first stay.

  Args:
    positions: [B, A, 3], in the unit of `cutoff`.
    present: bool [B, A], False for padding.
    cutoff: greatest distance of a neighbour.
    max_neighbors: the nearest so many are kept; the places are M = min(this,
      A - 1), and one at least.
  """
  # Halves would put atoms elsewhere.
  positions = positions.astype(jnp.promote_types(positions.dtype, jnp.float32))
  # What padding holds, be it NaN, is nowhere.
  positions = jnp.where(present[..., None], positions, 0.0)
  atoms = positions.shape[1]
  places = max(min(max_neighbors, atoms - 1), 1)
  fixed = jax.lax.stop_gradient(positions)
  square = jnp.square(fixed[:, :, None] - fixed[:, None]).sum(-1)
  own = jnp.arange(atoms, dtype=jnp.int32)
  pairs = present[:, :, None] & present[:, None]
  pairs &= (own[:, None] != own[None])[None] & (square <= cutoff**2)
  nearness, index = jax.lax.top_k(jnp.where(pairs, -square, -jnp.inf), places)
  real = nearness > -jnp.inf
  index = jnp.where(real, index, own[None, :, None])

  sources = jax.vmap(lambda own, index: own[index])(positions, index)
  vector = positions[:, :, None] - sources
  # The root has no slope at 0.
  square = jnp.where(real, jnp.square(vector).sum(-1), 1.0)
  distance = jnp.sqrt(square)
  count = jnp.where(present, jnp.maximum(real.sum(-1), 1), 0)
  return Graph(
    index=index,
    count=count.astype(jnp.int32),
    real=real,
    distance=jnp.where(real, distance, 0.0),
    direction=vector / distance[..., None],
  )


def radial_basis(graph: Graph, cutoff: float, size: int) -> jax.Array:
  """Gaussians of distances, twice as wide as they are apart.

  exp(-(r - mu)^2 / (2 (2 delta)^2)) of centres mu from 0 to the cutoff, delta
  apart.

  Returns:
    float32 [B, A, M, size]; zeros where there is no other atom.
  """
  centres = jnp.linspace(0.0, cutoff, size, dtype=graph.distance.dtype)
  width = 2 * cutoff / (size - 1)
  off = (graph.distance[..., None] - centres[None, None, None]) / width
  return jnp.where(graph.real[..., None], jnp.exp(-0.5 * off**2), 0.0)


def bond_order(graph: Graph, degrees: int) -> jax.Array:
  """How far the directions of neighbours agree, for each degree.

  |mean_j Y_l(d_ij)|, the order parameters of Steinhardt et al. (1983) up to a
  factor: rotations do not change them. The square root has no slope at 0, as in
  a crystal of perfect symmetry: its square is at least 1e-12 here.

  Returns:
    float32 [B, A, degrees]; zeros for an atom that is alone.
  """
  real = graph.real[..., None]
  count = jnp.maximum(graph.real.sum(-1), 1)[..., None]
  orders = []
  for harmonics in spherical_harmonics(graph.direction, degrees):
    mean = jnp.where(real, harmonics, 0.0).sum(2) / count
    square = jnp.square(mean).sum(-1)
    orders.append(jnp.sqrt(jnp.maximum(square, 1e-12)))
  alone = ~graph.real.any(-1)[..., None]
  return jnp.where(alone, 0.0, jnp.stack(orders, axis=-1))


def cosines(graph: Graph) -> jax.Array:
  """Of the angle between two neighbours, float32 [B, A, M, M].

  0 where a place has no other atom.
  """
  return jnp.einsum(
    "bajx,bakx->bajk", graph.direction, graph.direction, precision="highest"
  )
