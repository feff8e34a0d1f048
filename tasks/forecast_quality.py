"""How long forecasts of a chaotic system are of use, and what becomes of them.

As in the reference code of the authors (`pvlachas/RNN-RC-Chaos`): the error of
a forecast at a time is the root mean square over the numbers of a state, each
over its deviation on the attractor, which is one here, as states are scaled. A
forecast is valid as long as that stays below a threshold, and NaN never is.
Chaos makes a single trajectory meaningless, so there are many.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Two states of an attractor are off by 1.4 on average: a forecast that is off
# by as much has left it for good.
ESCAPED = 10.0


def errors(made: jax.Array, truth: jax.Array) -> jax.Array:
  """The error at each time, float32 [batch, time], infinite for NaN.

  Args:
    made: [batch, time, size], scaled to deviation one.
    truth: likewise.
  """
  error = jnp.sqrt(jnp.square(made - truth).mean(-1))
  return jnp.where(jnp.isnan(error), jnp.inf, error)


def valid_steps(error: jax.Array, threshold: float) -> jax.Array:
  """One at each time up to which all errors are below, float32."""
  return jnp.cumprod((error < threshold).astype(jnp.float32), axis=1)


def sums(
  made: jax.Array,
  truth: jax.Array,
  weights: jax.Array,
  *,
  threshold: float,
  strict_threshold: float,
) -> dict[str, jax.Array]:
  """Sums over trajectories of what `summarize` needs.

  Args:
    made: forecasts [batch, time, size].
    truth: likewise.
    weights: [batch], 0 for padding.
    threshold: of the error.
    strict_threshold: a second one.
  """
  error = errors(made, truth)
  stays = (error.max(1) < ESCAPED) & jnp.isfinite(made).all((1, 2))
  kept = weights * stays
  # What is not counted must be no NaN, which zero times would be one too.
  made = jnp.where(stays[:, None, None], made, 0)
  # One that diverges at once would make the mean of all infinite.
  first = jnp.minimum(jnp.square(error[:, 0]), ESCAPED**2)
  survivors = valid_steps(error, threshold)
  strict = valid_steps(error, strict_threshold).sum(1)
  return {
    "weight": weights.sum(),
    "loss": (weights * first).sum(),
    "survivors": (weights[:, None] * survivors).sum(0),
    "strict": (weights * strict).sum(),
    "stays": kept.sum(),
    "power": (kept[:, None] * _power(made)).sum(0),
    "true_power": (weights[:, None] * _power(truth)).sum(0),
  }


def _power(states: jax.Array) -> jax.Array:
  """Of each frequency but zero, the mean over numbers, [batch, time // 2]."""
  waves = jnp.fft.rfft(states.astype(jnp.float32), axis=1)
  return jnp.square(jnp.abs(waves)).mean(-1)[:, 1:]


def summarize(
  means: Mapping[str, Any], totals: Mapping[str, np.ndarray], unit: float
) -> dict[str, Any]:
  """Makes metrics of sums over all trajectories.

  Args:
    means: the sums that are numbers, over the weight.
    totals: all sums.
    unit: of one step, in the time that metrics are in.

  Returns:
    loss: the mean squared error of the first step, at most ESCAPED squared;
    valid_time: the mean over trajectories; valid_time_median, which half of
    them reach; valid_time_strict: the mean for the second threshold;
    complete: the share of forecasts that were valid to the end, so that the
    mean is an underestimate; diverged: the share that left the attractor or
    were not finite; spectrum_error: the mean difference in dB of the power
    spectra in time, of forecasts that did not diverge, infinite if all did or
    rest; trajectories: how many.
  """
  weight = float(totals["weight"])
  survivors = totals["survivors"] / weight
  return {
    "loss": means["loss"],
    "valid_time": float(survivors.sum()) * unit,
    "valid_time_median": int((survivors >= 0.5).sum()) * unit,
    "valid_time_strict": means["strict"] * unit,
    "complete": float(survivors[-1]),
    "diverged": 1 - means["stays"],
    "spectrum_error": _spectrum_error(totals),
    "trajectories": int(weight),
  }


def _spectrum_error(totals: Mapping[str, np.ndarray]) -> float:
  if not totals["stays"] or not np.all(totals["power"] > 0):
    return np.inf
  made = totals["power"] / totals["stays"]
  true = totals["true_power"] / totals["weight"]
  return float(np.abs(10 * np.log10(made / true)).mean())
