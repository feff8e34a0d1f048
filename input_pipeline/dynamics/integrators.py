"""Trajectories of dynamical systems in float64, many side by side.

A chaotic system multiplies what is rounded: float32 would be off after some ten
Lyapunov times, and a generator in it would not be the system that its constants
say. So trajectories are made in float64, on the CPU, since TPUs have none.
"""

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np


class System(Protocol):
  """A frozen dataclass, whose fields are the options of `config.data`.

  It checks them in `__post_init__`, before anything is computed.

  Attributes:
    step: time of one step of the integrator.
    every: steps of the integrator from one state that is kept to the next.
    transient: time that passes before the first that is kept, so that states
      are of the attractor.
    size: numbers of a state that are kept, the *observed* ones.
  """

  step: float
  every: int
  transient: float
  size: int

  def initial(self, rng: np.random.Generator) -> np.ndarray:
    """A random state to begin with, float64 [all numbers of a state]."""

  def advance(self, state: jax.Array) -> jax.Array:
    """The state one step later."""

  def observe(self, state: jax.Array) -> jax.Array:
    """The numbers of a state that are kept, [size]."""


def runge_kutta(
  slope: Callable[[jax.Array], jax.Array], state: jax.Array, step: float
) -> jax.Array:
  """One step of the classic Runge-Kutta method of order four.

  Args:
    slope: the right-hand side, of a state.
    state: now.
    step: of time.
  """
  k1 = slope(state)
  k2 = slope(state + step / 2 * k1)
  k3 = slope(state + step / 2 * k2)
  k4 = slope(state + step * k3)
  return state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


# One for training, one for evaluation, and those of a process with two configs.
@functools.lru_cache(maxsize=4)
def trajectories(
  system: System, stream: int, seed: int, count: int, length: int
) -> np.ndarray:
  """Makes trajectories from random states, after the transient.

  Trajectory n is a function of the system, `stream`, `seed` and n. It is the
  same array for the same arguments, so it must not be changed.

  Args:
    system: what moves.
    stream: tells splits apart.
    seed: of the states at the beginning.
    count: of trajectories.
    length: states that are kept of each, `every` steps apart.

  Returns:
    float64 [count, length, size].

  Raises:
    ValueError: if a trajectory is not finite.
  """
  initial = np.stack(
    [
      system.initial(np.random.default_rng((stream, seed, n)))
      for n in range(count)
    ]
  )
  transient = round(system.transient / system.step)
  with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    made = np.asarray(_integrate(system, transient, length, initial))
  if not np.isfinite(made).all():
    raise ValueError(
      f"step is {system.step}, with which trajectories of {system} are not "
      "finite; the integrator needs a smaller one."
    )
  made.flags.writeable = False
  return made


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _integrate(
  system: System, transient: int, length: int, initial: jax.Array
) -> jax.Array:
  """States [count, length, size], the first after `transient` steps."""
  advance = jax.vmap(system.advance)

  def later(state, steps):
    return jax.lax.fori_loop(0, steps, lambda _, x: advance(x), state)

  def keep(state, _):
    return later(state, system.every), jax.vmap(system.observe)(state)

  _, kept = jax.lax.scan(keep, later(initial, transient), length=length)
  return kept.swapaxes(0, 1)
