"""Solvers: how a step goes from one time to the next.

Each is a table of coefficients that a path and times fix before any work: with
the noise and the clean data that a prediction speaks of,

  x(next) = a x + b clean + c noise + d (clean of the step before).

The tables are made in float64. Orders are of the error at a fixed last time:
"ddim" and "euler" have order 1, "dpm_solver" has order 2. The docs say what
the last step, to sigma = 0, does to them.
"""

from collections.abc import Callable, Mapping

import numpy as np

from generation.paths import Path


def coefficients(solver: str, path: Path, times: np.ndarray) -> np.ndarray:
  """The table of a solver.

  Args:
    solver: a name of SOLVERS.
    path: of the model.
    times: float64 [steps + 1], those that the steps go through. They may rise
      for "ddim" and "euler".

  Returns:
    float64 [steps, 4]: of x, clean, noise and the clean of the step before.

  Raises:
    ValueError: for a solver that there is not, or times at which it, or what
      the model predicts, says nothing.
  """
  times = np.asarray(times, np.float64)
  if solver not in SOLVERS:
    raise ValueError(f"solver={solver!r} must be one of {tuple(SOLVERS)}.")
  if times.ndim != 1 or len(times) < 2:
    raise ValueError(f"times={times} must be two or more in a row.")
  known = {"noise": path.alpha, "clean": path.sigma}.get(path.prediction)
  if known is not None and not np.all(known(times[:-1]) > 0):
    name = "alpha" if path.prediction == "noise" else "sigma"
    raise ValueError(
      f"times={times} go on from where {name} is 0, of which a prediction of "
      f"{path.prediction!r} says nothing."
    )
  return SOLVERS[solver](path, times)


def _ddim(path, times):
  """DDIM (arXiv 2010.02502) with eta = 0: clean data and noise stay."""
  nothing = np.zeros(len(times) - 1)
  following = times[1:]
  return np.stack(
    [nothing, path.alpha(following), path.sigma(following), nothing], axis=-1
  )


def _euler(path, times):
  """Euler's steps of dx / dtime = alpha' clean + sigma' noise.

  On the straight path they are DDIM's.
  """
  steps = np.diff(times)
  if not np.all(path.sigma(times[:-1]) > 0) and path.lowest_time < 0:
    raise ValueError(
      f"times={times} go on from where sigma is 0, whose slope has no end: "
      'solver="euler" cannot; "ddim" can.'
    )
  alpha, sigma = path.slopes(times[:-1])
  return np.stack(
    [np.ones_like(steps), steps * alpha, steps * sigma, 0 * steps], axis=-1
  )


def _dpm_solver(path, times):
  """DPM-Solver++(2M) (arXiv 2211.01095), in l = log(alpha / sigma).

  The first step has order 1, having none before it, and so has a last one to
  sigma = 0, where l has no end: it takes the clean data as they are predicted.
  """
  if not np.all(np.diff(times) < 0):
    raise ValueError(f'times={times} must fall for solver="dpm_solver".')
  alpha, sigma = path.alpha(times), path.sigma(times)
  with np.errstate(divide="ignore"):
    h = np.diff(np.log(alpha) - np.log(sigma))
  # The clean data go on in a line through this step's and those before.
  beyond = np.zeros_like(h)
  inner = np.isfinite(h[1:]) & np.isfinite(h[:-1])
  beyond[1:][inner] = h[1:][inner] / (2 * h[:-1][inner])
  of_clean = -alpha[1:] * np.expm1(-h)
  return np.stack(
    [
      sigma[1:] / sigma[:-1],
      of_clean * (1 + beyond),
      np.zeros_like(h),
      -of_clean * beyond,
    ],
    axis=-1,
  )


SOLVERS: Mapping[str, Callable[[Path, np.ndarray], np.ndarray]] = {
  "ddim": _ddim,
  "euler": _euler,
  "dpm_solver": _dpm_solver,
}
