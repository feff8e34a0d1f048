"""How pass probabilities grow with the size of a model: the task scaling law.

"Predicting Emergent Abilities with Infinite Resolution Evaluation" (arXiv
2310.03262): an answer is a product of token probabilities, each with a loss
that falls as a power of the number of parameters N, so that a task's pass
probability is about PU(N) = exp(-c N^-alpha), and

  F(N) = log(-log PU(N)) = log c - alpha log N

a line in log N. Steps that must all succeed make F convex in log N (theorem 2),
the best of several circuits makes it concave (theorem 3); a mean over items
that differ in c bends it too, so the shape alone does not tell which.

The body of the paper was not read whole: weights of the fit, intervals, the
likelihood of single items and the map from losses are ours.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from evaluation import pass_rates

# Of alpha for single items, which few passes leave open.
_ALPHAS = (-2.0, 8.0)


class TaskLaw(NamedTuple):
  """F(N) = log_c - alpha log N.

  Attributes:
    log_c: at N = 1, in the unit of the sizes.
    alpha: the exponent.
    covariance: [2, 2], of (log_c, alpha).
  """

  log_c: float
  alpha: float
  covariance: np.ndarray


class Prediction(NamedTuple):
  """A pass probability with an interval.

  Attributes:
    estimate: in (0, 1).
    low: of the interval, which has the law's uncertainty and no other.
    high: of the interval.
  """

  estimate: float
  low: float
  high: float


class Shape(NamedTuple):
  """How F bends in log N.

  Attributes:
    quadratic: coefficient of (log N)^2: above 0 growth is slower than the law
      ("sub-scaling"), below 0 faster ("accelerated emergence").
    error: its standard error; nan where no errors are given and three sizes
      leave nothing to estimate it by.
  """

  quadratic: float
  error: float


def transformed(rates: np.ndarray) -> np.ndarray:
  """F = log(-log PU), of probabilities in (0, 1)."""
  return np.log(-np.log(rates))


def pass_rate(values: np.ndarray) -> np.ndarray:
  """PU = exp(-exp(F)), the inverse of `transformed`."""
  return np.exp(-np.exp(values))


def fit(
  sizes: np.ndarray, rates: np.ndarray, errors: np.ndarray | None = None
) -> TaskLaw:
  """Fits the law to a data set's pass rates, by least squares of F.

  Args:
    sizes: numbers of parameters [models], in any unit.
    rates: pass rates [models], above 0 and below 1.
    errors: standard errors of the rates [models]; F then has weights, by
      dF = dPU / (PU log PU), and the covariance is theirs. If None all weigh
      the same, and the covariance comes of the residuals.

  Raises:
    ValueError: for fewer than two sizes that differ, or a rate that has no F.
  """
  logs, values, weights = _points(sizes, rates, errors)
  coefficients, covariance = _least_squares(
    np.stack([np.ones_like(logs), -logs], axis=1), values, weights
  )
  return TaskLaw(*map(float, coefficients), covariance)


def predict(law: TaskLaw, size: float, confidence: float = 0.95) -> Prediction:
  """The pass rate of a model of another size, with the law's interval.

  Args:
    law: of smaller models.
    size: in the unit of theirs.
    confidence: of the interval, in (0, 1).
  """
  row = np.array([1.0, -np.log(size)])
  value = row @ (law.log_c, law.alpha)
  reach = stats.norm.isf((1 - confidence) / 2) * np.sqrt(
    row @ law.covariance @ row
  )
  # F falls where the rate grows.
  ends = (value, value + reach, value - reach)
  return Prediction(*(float(pass_rate(end)) for end in ends))


def curve_shape(
  sizes: np.ndarray, rates: np.ndarray, errors: np.ndarray | None = None
) -> Shape:
  """The quadratic term of F in log N, with its standard error. Ours.

  Args:
    sizes: as in `fit`, three or more that differ.
    rates: as in `fit`.
    errors: as in `fit`.

  Raises:
    ValueError: as `fit`.
  """
  logs, values, weights = _points(sizes, rates, errors, least=3)
  # Centred, so that the columns are not all but parallel.
  logs = logs - logs.mean()
  design = np.stack([np.ones_like(logs), logs, logs**2], axis=1)
  coefficients, covariance = _least_squares(design, values, weights)
  return Shape(float(coefficients[2]), float(np.sqrt(covariance[2, 2])))


def in_series(
  sizes: np.ndarray, c: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
  """The pass rate of steps that must all succeed (theorem 2).

  F is log sum_i c_i N^-alpha_i, the log-sum-exp of lines: convex.

  Args:
    sizes: [models].
    c: [steps].
    alpha: [steps].

  Returns:
    float64 [models].
  """
  return np.exp(-_powers(sizes, c, alpha).sum(axis=1))


def best_of(sizes: np.ndarray, c: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """The pass rate of the best of several circuits (theorem 3).

  F is the least of lines: concave. The paper fits a soft choice of two, whose
  weights were not read.

  Args:
    sizes: [models].
    c: [circuits].
    alpha: [circuits].

  Returns:
    float64 [models].
  """
  return np.exp(-_powers(sizes, c, alpha).min(axis=1))


def fit_items(
  sizes: np.ndarray, counts: list[pass_rates.Counts]
) -> tuple[np.ndarray, np.ndarray]:
  """Fits a law for each item, PU_s(N) = exp(-c_s N^-alpha_s), by likelihood.

  The likelihood p^c (1 - p)^(K - c) is the same whatever stopped the sampling,
  and an item without a pass in small models says what it says, where F of a
  pass rate of 0 would not exist. The paper fits F; this is ours.

  Args:
    sizes: [models], two or more.
    counts: of each model, of the same items.

  Returns:
    (log_c, alpha), float64 [items] each; nan for an item that passed nowhere,
    of which there is no best law: give it another by `rates_from_losses`.

  Raises:
    ValueError: if models and counts are not as many, or items differ.
  """
  sizes = np.asarray(sizes, np.float64)
  items = {len(each.passes) for each in counts}
  if len(sizes) != len(counts) or len(sizes) < 2 or len(items) != 1:
    raise ValueError(
      f"{len(sizes)} sizes and counts of {len(counts)} models with {items} "
      "items do not fit: counts are one for each of two sizes or more, all of "
      "the same items."
    )
  passes = np.stack([each.passes for each in counts])
  samples = np.stack([each.samples for each in counts])
  logs = np.log(sizes)
  fitted = [
    _fit_item(logs, passes[:, item], samples[:, item])
    for item in range(passes.shape[1])
  ]
  log_c, alpha = np.array(fitted).T
  return log_c, alpha


def predict_items(
  log_c: np.ndarray, alpha: np.ndarray, size: float
) -> np.ndarray:
  """PU_s(N) for each item; their mean is the instance-level prediction.

  Args:
    log_c: [items].
    alpha: [items].
    size: N.

  Returns:
    float64 [items], nan where there is no law.
  """
  return pass_rate(np.asarray(log_c) - np.asarray(alpha) * np.log(size))


def rates_from_losses(losses: np.ndarray, rates: np.ndarray) -> np.ndarray:
  """Pass rates of items that never passed, by their loss on the answer.

  The paper maps losses to pass rates on the other items; how was not read. Here
  log PU = a - b loss by least squares over items that passed: b is 1 and a is 0
  where the reference is the only right answer and the loss is summed.

  Args:
    losses: of the reference answers [items], in nats, of one model.
    rates: its pass rates [items], 0 where nothing passed.

  Returns:
    float64 [items]: `rates`, with what the map gives in the place of zeros, at
    most 1.

  Raises:
    ValueError: if fewer than two items with losses that differ passed.
  """
  losses, rates = (np.asarray(x, np.float64) for x in (losses, rates))
  passed = rates > 0
  if len(np.unique(losses[passed])) < 2:
    raise ValueError(
      f"losses are {losses[passed]} for the {passed.sum()} items that passed; "
      "a line needs two that differ."
    )
  slope, offset = np.polyfit(losses[passed], np.log(rates[passed]), 1)
  mapped = np.exp(np.minimum(offset + slope * losses, 0.0))
  return np.where(passed, rates, mapped)


def _fit_item(logs, passes, samples) -> tuple[float, float]:
  """(log_c, alpha) of the largest likelihood; nan if nothing passed."""
  if not passes.any():
    return np.nan, np.nan
  middle = logs.mean()

  def loss(coefficients):
    level, alpha = coefficients
    # Of F beyond these p is 0 or 1 in double precision.
    f = np.clip(level - alpha * (logs - middle), -30.0, 6.0)
    log_p = -np.exp(f)
    log_fail = np.log(-np.expm1(log_p))
    # p = 1 is what the largest of models may have: no failures, no loss.
    return -(passes * log_p + (samples - passes) * log_fail).sum()

  pooled = np.clip(passes.sum() / samples.sum(), 1e-12, 1 - 1e-12)
  found = optimize.minimize(
    loss,
    x0=(transformed(pooled), 0.5),
    bounds=((-25.0, 5.0), _ALPHAS),
    method="L-BFGS-B",
  )
  level, alpha = found.x
  return level + alpha * middle, alpha


def _points(sizes, rates, errors, least=2):
  """Checked (log N, F, weights or None), float64 [models] each."""
  sizes, rates = (np.asarray(x, np.float64) for x in (sizes, rates))
  if sizes.ndim != 1 or sizes.shape != rates.shape or (sizes <= 0).any():
    raise ValueError(
      f"{sizes=} and {rates=} must be as many, and sizes above 0."
    )
  if len(np.unique(sizes)) < least:
    raise ValueError(f"{sizes=} has fewer than {least} that differ.")
  if not ((rates > 0) & (rates < 1)).all():
    raise ValueError(
      f"{rates=} has one that is not above 0 and below 1, and no log(-log PU). "
      "For a model that never passed raise the cap, or fit_items."
    )
  if errors is None:
    return np.log(sizes), transformed(rates), None
  errors = np.asarray(errors, np.float64)
  if errors.shape != rates.shape or not (errors > 0).all():
    raise ValueError(f"{errors=} must be above 0, one for each of {rates=}.")
  weights = (rates * np.log(rates) / errors) ** 2
  return np.log(sizes), transformed(rates), weights


def _least_squares(design, values, weights):
  """Coefficients and their covariance [n, n]; see `fit`."""
  given = weights is not None
  root = np.sqrt(weights) if given else np.ones_like(values)
  scaled = design * root[:, None]
  covariance = np.linalg.inv(scaled.T @ scaled)
  coefficients = covariance @ scaled.T @ (values * root)
  if not given:
    free = len(values) - design.shape[1]
    residuals = values - design @ coefficients
    covariance = covariance * ((residuals**2).sum() / free if free else np.nan)
  return coefficients, covariance


def _powers(sizes, c, alpha):
  """c_i N^-alpha_i, [models, parts]."""
  sizes, c, alpha = (np.asarray(x, np.float64) for x in (sizes, c, alpha))
  return c * sizes[:, None] ** -alpha
