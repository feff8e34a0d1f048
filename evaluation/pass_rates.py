"""How probable it is that a sample passes, from samples drawn until some do.

An item is sampled until it has passed `wanted` times, r, or has been sampled
`cap` times, M. With c passes in K samples an item is *stopped by its passes* if
c = r, and else by the cap. "Predicting Emergent Abilities with Infinite
Resolution Evaluation" (PassUntil, arXiv 2310.03262) estimates the probability
by r / K (its eq. 2), which is too large: by a factor of about -ln p for r = 1,
and r / (r - 1) for more, where p is small.

`unbiased` is ours, and the default of what builds on it: (r - 1) / (K - 1) for
an item stopped by its passes, which is Haldane's estimator, and c / M for one
that the cap stopped. Both count paths: of the sequences that end so, the share
that begins with a pass. So its mean is p whatever p and the cap are.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Counts(NamedTuple):
  """What sampling until some passed gave for each item.

  Attributes:
    passes: integers [items], at most `wanted`.
    samples: integers [items] drawn, the one that stopped it included.
    wanted: passes that stop an item, r.
    cap: samples that stop an item, M.
  """

  passes: np.ndarray
  samples: np.ndarray
  wanted: int
  cap: int


class Mean(NamedTuple):
  """A mean of pass probabilities over items.

  Attributes:
    estimate: of the mean, in [0, 1].
    error: its standard error for these items, of sampling alone.
    low: of the interval.
    high: of the interval.
  """

  estimate: float
  error: float
  low: float
  high: float


def maximum_likelihood(counts: Counts) -> np.ndarray:
  """c / K for each item: r / K if r passed (PassUntil, eq. 2). Too large.

  Args:
    counts: of items.

  Returns:
    float64 [items].

  Raises:
    ValueError: for counts that cannot be.
  """
  passes, samples = _checked(counts)
  return passes / samples


def unbiased(counts: Counts) -> np.ndarray:
  """(r - 1) / (K - 1) for each item, c / M for one that the cap stopped. Ours.

  Args:
    counts: of items.

  Returns:
    float64 [items], whose mean over repetitions is the pass probability.

  Raises:
    ValueError: for counts that cannot be, and for wanted=1, where the same
      rule gives 1 if the first sample passes and else 0.
  """
  passes, samples = _checked(counts)
  if counts.wanted < 2:
    raise ValueError(
      f"wanted is {counts.wanted}, for which an unbiased estimate is 0 or 1; "
      "it must be 2 or more (maximum_likelihood takes 1, with its bias)."
    )
  stopped = passes == counts.wanted
  return (passes - stopped) / (samples - stopped)


def sampling_variance(counts: Counts) -> np.ndarray:
  """An unbiased estimate of the variance of `unbiased`, for each item. Ours.

  The square of `unbiased`, less what counting paths that begin with two passes
  estimates p^2 by. Only sums over items are of use: for r = 2 it is 0 where the
  first two samples pass, which is where the estimate is the largest.

  Args:
    counts: of items.

  Returns:
    float64 [items].

  Raises:
    ValueError: as `unbiased`, and for cap=1, of which there is no estimate.
  """
  estimate = unbiased(counts)
  if counts.cap < 2:
    raise ValueError(
      f"cap is {counts.cap}, and one sample says nothing of its variance; it "
      "must be 2 or more."
    )
  passes, samples = _checked(counts)
  # Of the free places of a path, those of its other passes.
  stopped = passes == counts.wanted
  free, places = passes - stopped, samples - stopped
  more = np.where(
    places > 1,
    (free - 1) / np.maximum(places - 1, 1),
    # Two passes at once: the only path, and it begins with both.
    1.0,
  )
  return estimate**2 - estimate * more


def interval(
  counts: Counts, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
  """Exact intervals of the pass probability of each item.

  Those of Clopper and Pearson, for a walk that stops at r passes or M samples:
  ends are where either tail of what could have been seen has half of the rest.

  Args:
    counts: of items.
    confidence: at least this part of such intervals has the truth, in (0, 1).

  Returns:
    (low, high), float64 [items] each.

  Raises:
    ValueError: for counts that cannot be, or a confidence out of its range.
  """
  passes, samples = _checked(counts)
  tail = _tail(confidence)
  stopped = passes == counts.wanted
  low = np.where(
    passes > 0,
    stats.beta.ppf(tail, np.maximum(passes, 1), samples - passes + 1),
    0.0,
  )
  # What could be less than r passes in K samples is less than r in K - 1.
  above = np.where(stopped, passes, passes + 1)
  fails = samples - passes
  high = np.where(
    fails > 0, stats.beta.ppf(1 - tail, above, np.maximum(fails, 1)), 1.0
  )
  return low, high


def mean(counts: Counts, confidence: float = 0.95) -> Mean:
  """The mean pass probability of items, by `unbiased`: PassUntil's PU. Ours.

  The interval is that of a normal logarithm, with the standard error, cut off
  at 1; it says nothing of other items. For r = 2 and 40 items simulations have
  the truth in 93 to 96 of 100. If nothing passed at all it is [0, high], with
  the exact bound for a sample of all items together, which by the inequality of
  means is one for their mean; if else no error can be estimated, the mean of
  the items' intervals.

  Args:
    counts: of items; those without a pass count, by 0.
    confidence: of the interval, in (0, 1).

  Raises:
    ValueError: as `sampling_variance` and `interval`.
  """
  tail = _tail(confidence)
  estimate = float(unbiased(counts).mean())
  # Of few items the sum of what is unbiased may be below zero.
  variance = max(float(sampling_variance(counts).sum()), 0.0)
  error = variance**0.5 / len(counts.passes)
  if not np.any(counts.passes):
    high = -np.expm1(np.log(tail) / np.sum(counts.samples))
    return Mean(0.0, 0.0, 0.0, float(high))
  if not error:
    ends = (float(end.mean()) for end in interval(counts, confidence))
    return Mean(estimate, error, *ends)
  factor = np.exp(stats.norm.isf(tail) * error / estimate)
  return Mean(
    estimate,
    error,
    float(estimate / factor),
    float(min(estimate * factor, 1.0)),
  )


def _tail(confidence: float) -> float:
  if not 0 < confidence < 1:
    raise ValueError(f"{confidence=} is not above 0 and below 1.")
  return (1 - confidence) / 2


def _checked(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
  """Passes and samples as int64 arrays [items].

  Raises:
    ValueError: if no sampling until `wanted` passed could have given them.
  """
  passes = np.asarray(counts.passes, np.int64)
  samples = np.asarray(counts.samples, np.int64)
  if passes.ndim != 1 or passes.shape != samples.shape or not passes.size:
    raise ValueError(
      f"passes has shape {passes.shape} and samples {samples.shape}; both must "
      "be [items], of one item or more."
    )
  if counts.wanted < 1 or counts.cap < 1:
    raise ValueError(
      f"wanted is {counts.wanted} and cap is {counts.cap}; both must be 1 or "
      "more."
    )
  stopped = passes == counts.wanted
  right = np.where(
    stopped,
    (samples >= passes) & (samples <= counts.cap),
    (samples == counts.cap) & (passes < counts.wanted) & (passes >= 0),
  )
  right &= passes <= samples
  if not right.all():
    item = int(np.flatnonzero(~right)[0])
    raise ValueError(
      f"item {item} has {passes[item]} passes in {samples[item]} samples, but "
      f"it stops at wanted={counts.wanted} passes or at cap={counts.cap} "
      "samples, not before and not after."
    )
  return passes, samples
