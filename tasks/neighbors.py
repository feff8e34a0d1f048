"""Classification by the nearest neighbours among features of examples."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

# Queries that are compared at once.
_ROWS = 256


def unit(features: jax.Array) -> jax.Array:
  """Gives vectors [rows, width] unit length, in float32."""
  features = features.astype(jnp.float32)
  square = jnp.square(features).sum(-1, keepdims=True)
  return features * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


@functools.partial(jax.jit, static_argnames=("neighbors", "num_classes"))
def votes(
  queries: jax.Array,
  bank: jax.Array,
  labels: jax.Array,
  *,
  neighbors: int,
  temperature: float,
  num_classes: int,
) -> jax.Array:
  """How much each class has of a query's nearest neighbours.

  A neighbour's weight is exp(cosine / temperature) (arXiv 1805.01978), here
  over that of the nearest one, which no order of classes sees.

  Args:
    queries: float32 [rows, width], of unit length.
    bank: float32 [examples, width], likewise.
    labels: integers [examples].
    neighbors: how many vote.
    temperature: above 0.
    num_classes: number of classes.

  Returns:
    float32 [rows, classes].
  """
  cosines = jnp.matmul(queries, bank.T, precision="highest")
  nearest, where = jax.lax.top_k(cosines, neighbors)
  weights = jnp.exp((nearest - nearest[:, :1]) / temperature)
  classes = jax.nn.one_hot(labels[where], num_classes)
  return jnp.einsum("rk,rkc->rc", weights, classes)


def accuracy(
  bank: tuple[np.ndarray, np.ndarray],
  queries: tuple[np.ndarray, np.ndarray],
  *,
  neighbors: int,
  temperature: float,
  num_classes: int,
) -> float:
  """The share of queries whose class has most votes; see `votes`.

  Args:
    bank: features of unit length, and their labels.
    queries: likewise.
    neighbors: how many vote.
    temperature: above 0.
    num_classes: number of classes.

  Raises:
    ValueError: for more neighbours than there are, a temperature that is not
      above 0, or no queries.
  """
  check(neighbors, temperature)
  if neighbors > len(bank[0]):
    raise ValueError(
      f"neighbors is {neighbors}, but there are {len(bank[0])} examples."
    )
  if not len(queries[0]):
    raise ValueError("The evaluation split has no usable example.")
  right = 0
  for features, labels in _parts(*queries):
    found = votes(
      features,
      bank[0],
      bank[1],
      neighbors=neighbors,
      temperature=temperature,
      num_classes=num_classes,
    )
    right += int((np.asarray(found).argmax(1) == labels).sum())
  return right / len(queries[0])


def check(neighbors: int, temperature: float) -> None:
  """Raises ValueError for numbers of which nothing can be made."""
  if neighbors < 1:
    raise ValueError(f"neighbors is {neighbors}; it must be at least 1.")
  if not temperature > 0:
    raise ValueError(f"temperature is {temperature}; it must be above 0.")


def _parts(
  features: np.ndarray, labels: np.ndarray
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
  for start in range(0, len(features), _ROWS):
    yield features[start : start + _ROWS], labels[start : start + _ROWS]
