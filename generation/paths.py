"""Paths from data to noise: x(time) = alpha(time) clean + sigma(time) noise.

`time` is what the model is fed: the number of the step of DDPM, or a thousand
times the time of flow matching. Paths are frozen and hashable, so that they can
be static in `jax.jit`.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from attention import checks

PREDICTIONS = ("noise", "velocity", "clean")
SCHEDULES = ("linear", "scaled_linear", "cosine")
SPACINGS = ("trailing", "leading")
ENDS = ("clean", "first")

# float64 of NumPy for what is a number of NumPy's or Python's, else of JAX.
Time = Any


@dataclasses.dataclass(frozen=True)
class Path(abc.ABC):
  """How noise comes over data, and what a model predicts of a noisy x.

  Attributes:
    prediction: "noise"; "velocity", which is noise - clean of flow matching and
      alpha noise - sigma clean of DDPM (Salimans & Ho, arXiv 2202.00512); or
      "clean".
    lowest_time: the last that a model is fed; of the class.
  """

  prediction: str

  lowest_time: ClassVar[float] = 0.0

  def __post_init__(self):
    _check("prediction", self.prediction, PREDICTIONS)

  @property
  def highest_time(self) -> float:
    """The time at which there is no more noise to come."""
    return 1000.0

  @abc.abstractmethod
  def alpha(self, time: Time) -> Time:
    """The share of the data, like `time`."""

  @abc.abstractmethod
  def sigma(self, time: Time) -> Time:
    """The share of the noise, like `time`."""

  @abc.abstractmethod
  def slopes(self, time: Time) -> tuple[Time, Time]:
    """The derivatives of alpha and sigma by the time."""

  @abc.abstractmethod
  def times(self, steps: int) -> np.ndarray:
    """The times that sampling goes through; steps are its consecutive pairs.

    Returns:
      float64 [steps + 1], falling.

    Raises:
      ValueError: for a number of steps that the path does not have.
    """

  @abc.abstractmethod
  def _velocity(self, alpha, sigma):
    """The shares (of noise, of clean) in the velocity."""

  def target(self, x: jax.Array, noise: jax.Array, time: Time) -> jax.Array:
    """What a model shall predict.

    Args:
      x: data [batch, ...].
      noise: of the same shape.
      time: a number, or [batch].
    """
    alpha, sigma = self._shares(time, x)
    of_noise, of_clean = self._parts(alpha, sigma)
    return of_noise * noise + of_clean * x

  def add_noise(self, x: jax.Array, noise: jax.Array, time: Time) -> jax.Array:
    """Noisy data; arguments as for `target`."""
    alpha, sigma = self._shares(time, x)
    return alpha * x + sigma * noise

  def clean(self, prediction: jax.Array, x: jax.Array, time: Time) -> jax.Array:
    """The data that a prediction speaks of.

    Args:
      prediction: [batch, ...].
      x: noisy data, of the same shape.
      time: a number, or [batch]; alpha > 0 if noise is predicted.
    """
    alpha, sigma = self._shares(time, x)
    if self.prediction == "clean":
      return prediction
    of_noise, of_clean = self._parts(alpha, sigma)
    scale = alpha * of_noise - sigma * of_clean
    return (of_noise * x - sigma * prediction) / scale

  def noise(self, prediction: jax.Array, x: jax.Array, time: Time) -> jax.Array:
    """The noise that a prediction speaks of; arguments as for `clean`.

    If the data are predicted, sigma > 0.
    """
    alpha, sigma = self._shares(time, x)
    if self.prediction == "noise":
      return prediction
    of_noise, of_clean = self._parts(alpha, sigma)
    scale = alpha * of_noise - sigma * of_clean
    return (alpha * prediction - of_clean * x) / scale

  def predict(self, clean: jax.Array, x: jax.Array, time: Time) -> jax.Array:
    """The prediction that speaks of these data, the inverse of `clean`."""
    alpha, sigma = self._shares(time, x)
    if self.prediction == "clean":
      return clean
    of_noise, of_clean = self._parts(alpha, sigma)
    return of_noise * (x - alpha * clean) / sigma + of_clean * clean

  def change_noise(
    self, prediction: jax.Array, change: jax.Array, time: Time
  ) -> jax.Array:
    """The prediction that speaks of so much more noise, x being the same.

    Where alpha is 0 no noise but x is possible, and the prediction stays.

    Args:
      prediction: [batch, ...].
      change: of the noise, like it.
      time: a number.
    """
    if self.prediction == "noise":
      return prediction + change
    slope = self.noise_slope(time)
    possible = jnp.isfinite(slope)
    return prediction + jnp.where(possible, slope, 0) * change

  def noise_slope(self, time: Time) -> Time:
    """By how much a prediction changes with the noise it speaks of, x fixed."""
    if self.prediction == "noise":
      return 1.0 + 0 * time
    alpha, sigma = self.alpha(time), self.sigma(time)
    of_noise, of_clean = self._parts(alpha, sigma)
    return (alpha * of_noise - sigma * of_clean) / alpha

  def _parts(self, alpha, sigma):
    """The shares (of noise, of clean) in what is predicted."""
    if self.prediction == "velocity":
      return self._velocity(alpha, sigma)
    return (1.0, 0.0) if self.prediction == "noise" else (0.0, 1.0)

  def _shares(self, time, x):
    """alpha and sigma, in the shape [batch, 1, ...] if there are many."""
    shares = self.alpha(time), self.sigma(time)
    if np.ndim(time) == 0:
      return shares
    shape = (-1,) + (1,) * (x.ndim - 1)
    return tuple(share.reshape(shape) for share in shares)


@dataclasses.dataclass(frozen=True)
class _Flow(Path):
  """The straight line of flow matching; see `flow`."""

  def alpha(self, time):
    return 1 - time / 1000

  def sigma(self, time):
    return time / 1000

  def slopes(self, time):
    slope = 0.001 + 0 * time
    return -slope, slope

  def times(self, steps):
    _check_steps(steps)
    return np.linspace(1000.0, 0.0, steps + 1)

  def _velocity(self, alpha, sigma):
    return 1.0, -1.0


@dataclasses.dataclass(frozen=True)
class _Ddpm(Path):
  """The steps of DDPM; see `ddpm`."""

  schedule: str
  steps: int
  first_beta: float | None
  last_beta: float | None
  spacing: str
  end: str

  # Of the data themselves, one step before the first that has noise.
  lowest_time: ClassVar[float] = -1.0

  def __post_init__(self):
    super().__post_init__()
    _check("schedule", self.schedule, SCHEDULES)
    _check("spacing", self.spacing, SPACINGS)
    _check("end", self.end, ENDS)
    _check_steps(self.steps)

  @property
  def highest_time(self):
    return self.steps - 1.0

  def alpha(self, time):
    return _library(time).exp(self._log_alpha(time))

  def sigma(self, time):
    library = _library(time)
    # Also where alpha is nearly one.
    return library.sqrt(-library.expm1(2 * self._log_alpha(time)))

  def slopes(self, time):
    slope = self._between(time, np.gradient(self._table()))
    alpha, sigma = self.alpha(time), self.sigma(time)
    return alpha * slope, -(alpha**2) * slope / sigma

  def times(self, steps):
    _check_steps(steps)
    if steps > self.steps:
      raise ValueError(
        f"steps={steps} are more than the {self.steps} that the path has."
      )
    last = -1.0 if self.end == "clean" else 0.0
    if self.spacing == "leading":
      return np.append(np.arange(steps)[::-1] * (self.steps // steps), last)
    return np.round(np.linspace(self.steps - 1, last, steps + 1))

  def _velocity(self, alpha, sigma):
    return alpha, -sigma

  def _log_alpha(self, time):
    return self._between(time, self._table())

  def _between(self, time, table):
    """The value at a time, of a table of all steps."""
    grid = np.arange(-1.0, self.steps)
    if not isinstance(time, jax.Array):
      return np.interp(time, grid, table)
    dtype = jnp.result_type(time.dtype, jnp.float32)
    return jnp.interp(time, jnp.asarray(grid, dtype), jnp.asarray(table, dtype))

  def _table(self):
    return _log_alphas(
      self.schedule, self.steps, self.first_beta, self.last_beta
    )


def flow(prediction: str = "velocity") -> Path:
  """The straight line: alpha = 1 - time / 1000, sigma = time / 1000.

  Flow matching (arXiv 2210.02747, 2209.03003). The velocity is noise - clean,
  along which Euler's steps go with falling times.

  Raises:
    ValueError: for a prediction that there is not.
  """
  return _Flow(prediction)


def ddpm(
  schedule: str = "linear",
  steps: int = 1000,
  *,
  prediction: str = "noise",
  first_beta: float | None = None,
  last_beta: float | None = None,
  spacing: str = "trailing",
  end: str = "clean",
) -> Path:
  """The path of DDPM: alpha^2 is the product of 1 - beta up to a step.

  Between steps log alpha is linear. Time -1 is that of the data, alpha = 1.

  Args:
    schedule: "linear", beta from 1e-4 to 0.02 (arXiv 2006.11239);
      "scaled_linear", sqrt(beta) linear from 0.00085 to 0.012 (Stable
      Diffusion); "cosine" (arXiv 2102.09672), beta at most 0.999.
    steps: T, how many there are.
    prediction: what the model gives; see `Path`.
    first_beta: instead of the schedule's; not of "cosine".
    last_beta: likewise.
    spacing: of n steps, "trailing": times from T - 1 in parts as equal as whole
      numbers can be (arXiv 2305.08891); "leading": multiples of T // n, from
      (n - 1) (T // n), as Stable Diffusion's DDIM has them.
    end: "clean": the last step is to time -1; "first": to time 0, which leaves
      sqrt(beta_0) of noise. With "leading" the last step is then from 0 to 0
      and changes nothing, as in the released samplers of Stable Diffusion.

  Raises:
    ValueError: for a name that there is not, no steps, or betas beyond (0, 1).
  """
  path = _Ddpm(prediction, schedule, steps, first_beta, last_beta, spacing, end)
  path._table()
  return path


@functools.cache
def _log_alphas(schedule, steps, first, last):
  """log alpha of the times -1 to steps - 1, float64."""
  return np.concatenate(
    [[0.0], np.cumsum(np.log1p(-_betas(schedule, steps, first, last))) / 2]
  )


def _betas(schedule, steps, first, last):
  if schedule == "cosine":
    if (first, last) != (None, None):
      raise ValueError(
        f"first_beta={first} and last_beta={last} must be None: "
        'schedule="cosine" has none to choose.'
      )
    angles = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    signal = np.cos(angles) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999)
  root = schedule == "scaled_linear"
  bounds = (0.00085, 0.012) if root else (1e-4, 0.02)
  first, last = (
    default if given is None else given
    for given, default in zip((first, last), bounds, strict=True)
  )
  for name, beta in (("first_beta", first), ("last_beta", last)):
    checks.number(name, beta)
    if not 0 < beta < 1:
      raise ValueError(f"{name}={beta} must be more than 0 and less than 1.")
  if root:
    return np.linspace(first**0.5, last**0.5, steps) ** 2
  return np.linspace(first, last, steps)


def _library(time):
  return jnp if isinstance(time, jax.Array) else np


def _check(name, value, known):
  if value not in known:
    raise ValueError(f"{name}={value!r} must be one of {known}.")


def _check_steps(steps):
  checks.whole("steps", steps, 1)
