"""Lorenz's model of 1996: a ring of numbers, alone or with faster rings.

Lorenz, "Predictability: a problem partly solved" (1996), equations 1 to 3. In
"Deconstructing Recurrence, Attention, and Gating" (arXiv 2410.02654) it is the
multiscale one that is forecast.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import checks
from input_pipeline.dynamics import integrators


@dataclasses.dataclass(frozen=True)
class Lorenz96:
  """dX_j = (X_{j+1} - X_{j-2}) X_{j-1} - X_j + F on a ring.

  Attributes:
    size: numbers on the ring.
    forcing: F.
    step: see `integrators.System`.
    every: likewise.
    transient: likewise.
  """

  size: int = 40
  forcing: float = 8.0
  step: float = 0.01
  every: int = 1
  transient: float = 50.0

  def __post_init__(self):
    checks.check_integer("size", self.size, 4)
    check_time(self)

  def initial(self, rng: np.random.Generator) -> np.ndarray:
    """The state of rest, X = F, and noise of 0.01 of it."""
    return self.forcing + 0.01 * rng.standard_normal(self.size)

  def slope(self, state: jax.Array) -> jax.Array:
    """The right-hand side, [size]."""
    return _advection(state) - state + self.forcing

  def advance(self, state: jax.Array) -> jax.Array:
    """One step of Runge-Kutta."""
    return integrators.runge_kutta(self.slope, state, self.step)

  def observe(self, state: jax.Array) -> jax.Array:
    """All of it."""
    return state


@dataclasses.dataclass(frozen=True)
class Lorenz96Multiscale:
  """Slow numbers X, each with a ring's part of faster Y, and these with Z.

    dX_k = (X_{k+1} - X_{k-2}) X_{k-1} - X_k + F - (h c / b) sum_j Y_jk
    dY_jk = -c b Y_{j+1,k} (Y_{j+2,k} - Y_{j-1,k}) - c Y_jk + (h c / b) X_k
            - (h e / d) sum_i Z_ijk
    dZ_ijk = e d Z_{i-1,jk} (Z_{i+1,jk} - Z_{i-2,jk}) - e Z_ijk + (h e / d) Y_jk

  Y of all k are one ring, in the order of k, and so are Z. Only X is observed.
  The paper's constants could not be read. Those with a third tier are as
  recalled from Thornes et al. and Chattopadhyay et al. (8, 64 and 512 numbers,
  b = c = d = e = 10, F = 20, step 0.005): they are no evidence of what the
  paper has. Without a third tier, the default, the equations are Lorenz's.

  Attributes:
    size: K, slow numbers.
    fast: J, of Y for each X.
    fastest: I, of Z for each Y; 0 for two tiers.
    forcing: F.
    coupling: h.
    b: amplitude of X over that of Y.
    c: speed of Y over that of X.
    d: amplitude of Y over that of Z.
    e: speed of Z over that of X.
    step: see `integrators.System`.
    every: likewise.
    transient: likewise.
  """

  size: int = 8
  fast: int = 8
  fastest: int = 0
  forcing: float = 20.0
  coupling: float = 1.0
  b: float = 10.0
  c: float = 10.0
  d: float = 10.0
  e: float = 10.0
  step: float = 0.005
  every: int = 1
  transient: float = 20.0

  def __post_init__(self):
    checks.check_integer("size", self.size, 4)
    checks.check_integer("fast", self.fast, 1)
    checks.check_integer("fastest", self.fastest, 0)
    for name in "bcde":
      check_positive(name, getattr(self, name))
    check_time(self)

  def initial(self, rng: np.random.Generator) -> np.ndarray:
    """X = F with noise of 0.01, and small noise for the others."""
    y = self.size * self.fast
    slow = self.forcing + 0.01 * rng.standard_normal(self.size)
    return np.concatenate(
      [slow, 0.01 * rng.standard_normal(y + y * self.fastest)]
    )

  def slope(self, state: jax.Array) -> jax.Array:
    """The right-hand side of X, Y and Z one after another."""
    ends = (self.size, self.size * (1 + self.fast))
    x, y, z = jnp.split(state, ends)
    down, c = self.coupling * self.c / self.b, self.c
    dx = _advection(x) - x + self.forcing - down * _group_sums(y, self.fast)
    # Turned round: Y runs against the direction of X.
    dy = c * self.b * _advection(y[::-1])[::-1] - c * y
    dy += down * jnp.repeat(x, self.fast)
    if not self.fastest:
      return jnp.concatenate([dx, dy])
    down, e = self.coupling * self.e / self.d, self.e
    dy -= down * _group_sums(z, self.fastest)
    dz = e * self.d * _advection(z) - e * z + down * jnp.repeat(y, self.fastest)
    return jnp.concatenate([dx, dy, dz])

  def advance(self, state: jax.Array) -> jax.Array:
    """One step of Runge-Kutta."""
    return integrators.runge_kutta(self.slope, state, self.step)

  def observe(self, state: jax.Array) -> jax.Array:
    """X."""
    return state[: self.size]


def _advection(x: jax.Array) -> jax.Array:
  """(x_{j+1} - x_{j-2}) x_{j-1}"""
  return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1)


def _group_sums(x: jax.Array, size: int) -> jax.Array:
  return x.reshape(-1, size).sum(-1)


def check_positive(name: str, value: float) -> None:
  """Raises `ValueError` unless it is a finite number above 0."""
  if not 0 < value < float("inf"):
    raise ValueError(f"{name} is {value!r}, but it must be a number above 0.")


def check_time(system: integrators.System) -> None:
  """Raises `ValueError` for times of a system that cannot be."""
  check_positive("step", system.step)
  checks.check_integer("every", system.every, 1)
  checks.check_number("transient", system.transient)
