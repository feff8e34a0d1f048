"""Solvers on a Gaussian, where the solution is known, and against diffusers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import generation
from generation import solvers
from tests.generation import gaussian

# (path, first and last time): within, where no last step is special.
WITHIN = {
  "flow": (generation.flow(), 990.0, 50.0),
  "ddpm": (generation.ddpm("linear"), 990.0, 50.0),
  "cosine": (generation.ddpm("cosine", prediction="velocity"), 900.0, 50.0),
}


def error(path, times, solver, channels=slice(None)):
  x = gaussian.draw(path, times[0])
  made = generation.sample(
    gaussian.denoiser(path), x, path, times=times, solver=solver
  )
  assert made.dtype == jnp.float64
  exact = gaussian.solution(path, x, times[0], times[-1])
  return np.abs(np.asarray(made) - exact)[:, channels].max()


def orders(errors):
  """By how much the logarithm of the error falls as steps are doubled."""
  return -np.diff(np.log2(errors))


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize(
  ("solver", "expected"), [("ddim", 1), ("euler", 1), ("dpm_solver", 2)]
)
def test_order(name, solver, expected):
  path, first, last = WITHIN[name]
  with jax.enable_x64(True):
    errors = [
      error(path, np.linspace(first, last, steps + 1), solver)
      for steps in (50, 100, 200)
    ]
  assert abs(orders(errors)[-1] - expected) < 0.15


@pytest.mark.parametrize(
  ("name", "solver", "expected"),
  [
    ("flow", "ddim", 1),
    ("flow", "dpm_solver", 2),
    ("ddpm", "ddim", 1),
    ("ddpm", "dpm_solver", 2),
  ],
)
def test_order_to_the_end(name, solver, expected):
  """With the last step, to sigma = 0, for data that spread by 1."""
  path = WITHIN[name][0]
  with jax.enable_x64(True):
    errors = [
      error(path, path.times(steps), solver, 1) for steps in (50, 100, 200)
    ]
  assert abs(orders(errors)[-1] - expected) < 0.15


def test_last_step_takes_the_prediction():
  """What it is off by, x exact before it: r^2 / 2, r = sigma / (alpha s)."""
  path = generation.flow()
  with jax.enable_x64(True):
    for last in (20.0, 10.0, 5.0):
      x = gaussian.draw(path, last)
      exact = gaussian.solution(path, x, last, 0.0)
      for solver in ("ddim", "dpm_solver"):
        made = generation.sample(
          gaussian.denoiser(path), x, path, times=[last, 0.0], solver=solver
        )
        ratio = (np.asarray(made) - gaussian.MEAN) / (exact - gaussian.MEAN)
        r = path.sigma(last) / path.alpha(last) / gaussian.DEVIATION
        expected = np.broadcast_to(1 / np.sqrt(1 + r**2), ratio.shape)
        np.testing.assert_allclose(ratio, expected, rtol=1e-12)
        assert abs(1 - ratio[0, 1] - r[1] ** 2 / 2) < r[1] ** 4


def test_euler_is_ddim_on_the_straight_path():
  path = generation.flow()
  x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
  made = [
    generation.sample(gaussian.denoiser(path), x, path, steps=9, solver=solver)
    for solver in ("ddim", "euler")
  ]
  np.testing.assert_allclose(*made, atol=2e-6)


@pytest.mark.parametrize("prediction", ["noise", "velocity", "clean"])
@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_all_predictions_give_the_same(prediction, solver):
  x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
  path = generation.ddpm(prediction=prediction)
  made = generation.sample(
    gaussian.denoiser(path), x, path, steps=13, solver=solver
  )
  path = generation.ddpm()
  with jax.enable_x64(True):
    expected = generation.sample(
      gaussian.denoiser(path),
      jnp.asarray(x, jnp.float64),
      path,
      steps=13,
      solver=solver,
    )
  np.testing.assert_allclose(made, expected, atol=1e-3)


def written_anew(path, x, times, predict):
  """DPM-Solver++(2M) by the algorithm 2 of arXiv 2211.01095, in float64."""
  alpha, sigma = path.alpha(times), path.sigma(times)
  lam = np.log(alpha) - np.log(np.maximum(sigma, 1e-300))
  before = None
  for i in range(1, len(times)):
    clean = predict(x, times[i - 1])
    h = lam[i] - lam[i - 1]
    if i == 1 or sigma[i] == 0:
      d = clean
    else:
      r = (lam[i - 1] - lam[i - 2]) / h
      d = (1 + 1 / (2 * r)) * clean - before / (2 * r)
    x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h) - 1) * d
    before = clean
  return x


def test_dpm_solver_is_algorithm_2():
  path = generation.ddpm("cosine", prediction="clean")
  denoise = gaussian.denoiser(path)
  x = np.random.default_rng(0).normal(size=(2, 3))
  times = np.array([990.0, 800.0, 777.0, 300.0, 20.0, -1.0])
  predict = lambda x, time: denoise(x, np.float64(time), None)[0]
  expected = written_anew(path, x, times, predict)
  with jax.enable_x64(True):
    made = generation.sample(
      denoise, jnp.asarray(x), path, times=times, solver="dpm_solver"
    )
  np.testing.assert_allclose(made, expected, rtol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("steps", [50, 30])
def test_same_as_diffusers_ddim(steps):
  """As Stable Diffusion has it: leading times, no end at the data."""
  import diffusers
  import torch

  scheduler = diffusers.DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=0,
  )
  scheduler.set_timesteps(steps)
  path = generation.ddpm("scaled_linear", spacing="leading", end="first")
  times = path.times(steps)
  np.testing.assert_array_equal(scheduler.timesteps.numpy(), times[:-1])
  x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
  made = generation.sample(gaussian.denoiser(path), x, path, times=times)
  expected = torch.from_numpy(x)
  denoise = gaussian.denoiser(path)
  for time in scheduler.timesteps:
    noise, _ = denoise(expected.numpy(), np.float64(time), None)
    expected = scheduler.step(
      torch.from_numpy(noise), time, expected
    ).prev_sample
  np.testing.assert_allclose(made, expected.numpy(), atol=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize("steps", [50, 21])
def test_same_as_diffusers_dpm_solver(steps):
  import diffusers
  import torch

  scheduler = diffusers.DPMSolverMultistepScheduler(
    beta_schedule="linear",
    timestep_spacing="trailing",
    final_sigmas_type="zero",
    lower_order_final=False,
  )
  with warnings.catch_warnings():
    # It gives tensors to NumPy in an old way.
    warnings.simplefilter("ignore", DeprecationWarning)
    scheduler.set_timesteps(steps)
  path = generation.ddpm("linear")
  times = np.append(scheduler.timesteps.numpy(), -1.0)
  if steps == 50:
    np.testing.assert_array_equal(times, path.times(steps))
  x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
  denoise = gaussian.denoiser(path)
  made = generation.sample(denoise, x, path, times=times, solver="dpm_solver")
  expected = torch.from_numpy(x)
  for time in scheduler.timesteps:
    noise, _ = denoise(expected.numpy(), np.float64(time), None)
    expected = scheduler.step(
      torch.from_numpy(noise), time, expected
    ).prev_sample
  np.testing.assert_allclose(made, expected.numpy(), atol=5e-4)


@pytest.mark.parametrize(
  ("path", "times", "solver", "message"),
  [
    (generation.flow(), [9.0, 0.0], "heun", r"solver='heun' must be one of"),
    (generation.flow("noise"), [1000.0, 0.0], "ddim", r"where alpha is 0"),
    (generation.flow(), [9.0], "ddim", r"must be two or more"),
    (generation.flow(), [9.0, 9.0], "dpm_solver", r"must fall for solver"),
    (generation.ddpm(), [-1.0, 9.0], "euler", r'"ddim" can'),
    (generation.flow("clean"), [0.0, 9.0], "ddim", r"where sigma is 0"),
  ],
)
def test_refuses(path, times, solver, message):
  with pytest.raises(ValueError, match=message):
    solvers.coefficients(solver, path, np.array(times))
