"""Generators beside other integrators and equations written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from input_pipeline.dynamics import integrators, lyapunov, systems


def later(system, state, steps):
  """The state after some steps, float64."""
  with jax.enable_x64(True):
    advance = jax.jit(system.advance)
    state = jnp.asarray(state)
    for _ in range(steps):
      state = advance(state)
    return np.asarray(state)


def solved(slope, state, time):
  """What scipy makes of the same."""
  found = integrate.solve_ivp(
    lambda _, x: slope(x), (0, time), state, "DOP853", rtol=1e-12, atol=1e-12
  )
  return found.y[:, -1]


def lorenz96(x, forcing):
  n = len(x)
  return np.array(
    [(x[(j + 1) % n] - x[j - 2]) * x[j - 1] - x[j] + forcing for j in range(n)]
  )


def multiscale(state, system):
  """Sums one after another; see `Lorenz96Multiscale`."""
  s = system
  K, J = s.size, s.fast
  x, y, z = np.split(state, [K, K * (1 + J)])
  down, lower = s.coupling * s.c / s.b, s.coupling * s.e / s.d
  dx, dy, dz = np.empty(len(x)), np.empty(len(y)), np.empty(len(z))
  for k in range(K):
    dx[k] = x[k - 1] * (x[(k + 1) % K] - x[k - 2]) - x[k] + s.forcing
    dx[k] -= down * sum(y[k * J + j] for j in range(J))
    for j in range(J):
      n, N = k * J + j, K * J
      dy[n] = -s.c * s.b * y[(n + 1) % N] * (y[(n + 2) % N] - y[n - 1])
      dy[n] += -s.c * y[n] + down * x[k]
      for i in range(s.fastest):
        m, M = n * s.fastest + i, N * s.fastest
        dy[n] -= lower * z[m]
        dz[m] = s.e * s.d * z[m - 1] * (z[(m + 1) % M] - z[m - 2])
        dz[m] += -s.e * z[m] + lower * y[n]
  return np.concatenate([dx, dy, dz])


def test_lorenz96_is_what_scipy_makes_of_it():
  system = systems.create("lorenz96", {"size": 7, "forcing": 8.0})
  state = np.random.default_rng(0).normal(2, 3, 7)
  expected = solved(lambda x: lorenz96(x, 8.0), state, 1.0)
  got = later(dataclasses.replace(system, step=0.0025), state, 400)
  np.testing.assert_allclose(got, expected, atol=1e-6)
  # Of order four: half the step, a sixteenth of the error.
  wide, narrow = (
    np.abs(later(dataclasses.replace(system, step=h), state, n) - expected)
    for h, n in ((0.02, 50), (0.01, 100))
  )
  assert 10 < wide.max() / narrow.max() < 24
  rest = np.full(7, 8.0)
  np.testing.assert_array_equal(later(system, rest, 3), rest)


@pytest.mark.parametrize("fastest", [0, 3])
def test_lorenz96_of_several_scales_is_the_sums_written_out(fastest):
  options = {"size": 5, "fast": 2, "fastest": fastest, "forcing": 9.0}
  options |= {"coupling": 0.7, "b": 3.0, "c": 4.0, "d": 5.0, "e": 6.0}
  system = systems.create("lorenz96_multiscale", options)
  state = system.initial(np.random.default_rng(0))
  assert state.shape == (5 + 10 + 10 * fastest,)
  state += np.random.default_rng(1).normal(size=state.shape)
  with jax.enable_x64(True):
    slope = np.asarray(system.slope(jnp.asarray(state)))
  np.testing.assert_allclose(slope, multiscale(state, system), rtol=1e-12)
  expected = solved(lambda x: multiscale(x, system), state, 0.05)
  fine = dataclasses.replace(system, step=0.0005)
  np.testing.assert_allclose(later(fine, state, 100), expected, atol=1e-6)
  np.testing.assert_array_equal(system.observe(state), state[:5])


def kuramoto_sivashinsky(u, length):
  """The right-hand side by complex waves, as a sum over all of them."""
  n = len(u)
  k = 2 * np.pi / length * np.fft.fftfreq(n, 1 / n)
  first = np.where(np.arange(n) == n // 2, 0, k)
  made = (k**2 - k**4) * np.fft.fft(u) - 0.5j * first * np.fft.fft(u**2)
  return np.fft.ifft(made).real


def test_kuramoto_sivashinsky_is_what_scipy_makes_of_it():
  options = {"size": 32, "length": 22.0, "step": 0.05}
  system = systems.create("kuramoto_sivashinsky", options)
  x = 22.0 / 32 * np.arange(32)
  state = np.cos(2 * np.pi * x / 22) * (1 + np.sin(4 * np.pi * x / 22))
  found = integrate.solve_ivp(
    lambda _, u: kuramoto_sivashinsky(u, 22.0),
    (0, 10.0),
    state,
    "Radau",
    rtol=1e-9,
    atol=1e-10,
  )
  got = later(system, state, 200)
  assert np.abs(got - state).max() > 1
  np.testing.assert_allclose(got, found.y[:, -1], atol=2e-5)


def test_small_waves_grow_as_the_linear_equation_says():
  options = {"size": 16, "length": 20.0, "step": 0.25}
  system = systems.create("kuramoto_sivashinsky", options)
  state = 1e-9 * np.random.default_rng(0).standard_normal(16)
  expected = np.fft.rfft(state) * np.exp(2.0 * system.growth)
  got = np.fft.rfft(later(system, state, 8))
  np.testing.assert_allclose(got, expected, atol=1e-15)
  # Also the highest wave, which the reference leaves as it is.
  assert abs(got[-1]) < 1e-12 < abs(np.fft.rfft(state)[-1])
  assert np.abs(got[1]) > np.abs(np.fft.rfft(state)[1])


def test_trajectories_are_functions_of_their_numbers():
  system = systems.create(
    "lorenz96", {"size": 5, "step": 0.02, "every": 3, "transient": 0.1}
  )
  made = integrators.trajectories(system, 0, 7, 3, 4)
  assert (made.shape, made.dtype) == ((3, 4, 5), np.float64)
  state = later(system, system.initial(np.random.default_rng((0, 7, 2))), 5)
  for n in range(4):
    np.testing.assert_allclose(made[2, n], state, rtol=1e-12)
    state = later(system, state, 3)
  # As many more do not change those that there were.
  more = integrators.trajectories(system, 0, 7, 4, 5)
  np.testing.assert_allclose(more[:3, :4], made, rtol=1e-12)
  other = integrators.trajectories(system, 1, 7, 3, 4)
  assert np.abs(other - made).max() > 1e-4
  with pytest.raises(ValueError, match="read-only"):
    made[0] = 0


@dataclasses.dataclass(frozen=True)
class Linear:
  """Two numbers, of which one grows by exp(0.3 t)."""

  step: float = 0.1
  every: int = 1
  transient: float = 20.0
  size: int = 2

  def initial(self, rng):
    return rng.standard_normal(2)

  def advance(self, state):
    matrix = jnp.asarray([[0.3, 1.0], [0.0, -0.5]])
    return integrators.runge_kutta(lambda x: matrix @ x, state, self.step)

  def observe(self, state):
    return state


def test_the_lyapunov_exponent_of_a_linear_system_is_its_eigenvalue():
  found = lyapunov.lyapunov_exponent(Linear(), 10.0, count=2)
  np.testing.assert_allclose(found, 0.3, atol=1e-5)


@pytest.mark.parametrize(
  ("name", "options", "error"),
  [
    ("lorentz96", {}, "no system 'lorentz96'; did you mean lorenz96"),
    ("lorenz96", {"forcin": 8}, "no option of the system 'lorenz96' 'forcin'"),
    ("lorenz96", {"size": 3}, "size is 3, .*at least 4"),
    ("lorenz96", {"step": 0.0}, "step is 0.0, .*above 0"),
    ("lorenz96", {"every": 0}, "every is 0, .*at least 1"),
    ("lorenz96", {"transient": -1.0}, "transient is -1.0"),
    ("lorenz96_multiscale", {"b": -1.0}, "b is -1.0"),
    ("kuramoto_sivashinsky", {"size": 33}, "size is 33, .*even"),
    ("kuramoto_sivashinsky", {"length": 0.0}, "length is 0.0"),
  ],
)
def test_options_that_do_not_fit(name, options, error):
  with pytest.raises(ValueError, match=error):
    systems.create(name, options)


def test_a_step_that_is_too_large():
  system = systems.create("lorenz96", {"size": 5, "step": 0.5})
  with pytest.raises(ValueError, match=r"step is 0.5, .*not finite"):
    integrators.trajectories(system, 0, 0, 1, 50)
