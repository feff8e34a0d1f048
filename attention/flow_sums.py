"""Sums over what positions of flow attention see, and their state."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from attention.linear import LinearState

# Of a source that is none, before exponentials; finite, so that a sum over
# nothing but such sources has a logarithm and a gradient.
NO_SOURCE = -1e30


class FlowState(NamedTuple):
  """What the positions seen so far leave behind, in float32.

  Attributes:
    count: number of positions [batch].
    keys: sum of phi(k) [batch, heads, features].
    queries: sum of phi(q), likewise.
    outgoing: sum of phi(k) O, likewise.
    incoming: sum of phi(q) I, likewise.
    competition: logarithm of the sum of exp(b) [batch, heads].
    memory: sum of phi(k) (v C)^T, the state of the linear attention within.
  """

  count: Array
  keys: Array
  queries: Array
  outgoing: Array
  incoming: Array
  competition: Array
  memory: LinearState


def empty(batch: int, heads: int, features: int, v_dim: int) -> FlowState:
  """Returns the state before the first position."""

  def zeros(*shape: int) -> Array:
    return jnp.zeros((batch, *shape), jnp.float32)

  # Arrays of their own, for each may be donated.
  sums = (zeros(heads, features) for _ in range(4))
  memory = LinearState(
    zeros(heads, features, v_dim + 1), zeros(heads, v_dim), zeros()
  )
  nothing = jnp.full((batch, heads), NO_SOURCE, jnp.float32)
  return FlowState(zeros(), *sums, nothing, memory)


class Whole:
  """Every position sees all."""

  def total(self, name: str, terms: Array) -> Array:
    """Returns the sum of [batch, length, ...] over the length, kept as 1."""
    del name
    return terms.sum(1, keepdims=True)


class Running:
  """A position sees what is up to it, since the last that begins anew."""

  def __init__(self, begins: Array | None, state: FlowState | None):
    """Takes what all sums share.

    Args:
      begins: bool [batch, length], or None for nowhere.
      state: what positions before the first left, or None.
    """
    self._begins = begins
    self._state = state
    # The sums after the last position, by name, if there was a state.
    self.after: dict[str, Array] = {}

  def total(self, name: str, terms: Array) -> Array:
    """Returns the sums of [batch, length, ...] up to each position."""
    return self._scanned(name, terms, jnp.add, jnp.cumsum)

  def log_total(self, name: str, terms: Array) -> Array:
    """Returns logarithms of sums of exponentials, likewise.

    One constant for all positions would be that of the future, which a large
    term there makes of the past a zero.
    """
    return self._scanned(name, terms, jnp.logaddexp, jax.lax.cumlogsumexp)

  def _scanned(
    self,
    name: str,
    terms: Array,
    join: Callable[[Array, Array], Array],
    cumulative: Callable[..., Array],
  ) -> Array:
    begins = self._begins
    if self._state is not None:
      before = getattr(self._state, name)
      before = before.reshape(before.shape[0], 1, *terms.shape[2:])
      shape = jnp.broadcast_shapes(before.shape[:1], terms.shape[:1])
      terms = jnp.broadcast_to(terms, (*shape, *terms.shape[1:]))
      terms = jnp.concatenate([before, terms], axis=1)
      if begins is not None:
        begins = jnp.pad(begins, ((0, 0), (1, 0)))
    if begins is None:
      totals = cumulative(terms, axis=1)
    else:
      totals = _since(begins, terms, join)
    if self._state is None:
      return totals
    self.after[name] = totals[:, -1]
    return totals[:, 1:]


def _since(
  begins: Array, terms: Array, join: Callable[[Array, Array], Array]
) -> Array:
  """Joins terms [batch, length, ...] since the last that begins anew."""
  begins = begins.reshape(*begins.shape, *(1,) * (terms.ndim - 2))

  def after(left, right):
    begun, joined = left
    begins, terms = right
    return begun | begins, jnp.where(begins, terms, join(joined, terms))

  # Both may be the same for all rows.
  rows = max(begins.shape[0], terms.shape[0])
  begins, terms = (
    jnp.broadcast_to(x, (rows, *x.shape[1:])) for x in (begins, terms)
  )
  return jax.lax.associative_scan(after, (begins, terms), axis=1)[1]
