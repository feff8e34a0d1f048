"""How fast two trajectories part that begin side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.dynamics.integrators import System


def lyapunov_exponent(
  system: System, time: float, *, count: int = 8, seed: int = 0
) -> float:
  """The greatest Lyapunov exponent, by the growth of a tangent (Benettin 1980).

  Its inverse is the system's *Lyapunov time*, in which a small error grows by
  the factor e.

  Args:
    system: after its transient, of which the first half is the tangent's too.
    time: over which the growth is measured, of each trajectory.
    count: trajectories, of which this is the mean.
    seed: of states and tangents at the beginning.

  Returns:
    Per unit of time.
  """
  rng = np.random.default_rng(seed)
  states = np.stack([system.initial(rng) for _ in range(count)])
  tangents = rng.standard_normal(states.shape)
  before, during = (round(t / system.step) for t in (system.transient, time))
  with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    growth = _growth(system, before, during, states, tangents)
  return float(growth) / (during * system.step)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _growth(system, before, during, states, tangents):
  """The mean logarithm of a tangent's growth during the steps after others."""

  def step(carry):
    state, tangent, grown = carry
    state, tangent = jax.jvp(system.advance, (state,), (tangent,))
    norm = jnp.linalg.norm(tangent)
    return state, tangent / norm, grown + jnp.log(norm)

  def run(state, tangent):
    def loop(steps, carry):
      return jax.lax.fori_loop(0, steps, lambda _, c: step(c), carry)

    state, tangent, _ = loop(before, (state, tangent, jnp.zeros(())))
    return loop(during, (state, tangent, jnp.zeros(())))[2]

  return jax.vmap(run)(states, tangents).mean()
