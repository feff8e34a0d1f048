"""The Inception Score."""

import itertools

import numpy as np


def inception_score(
  logits: np.ndarray, *, splits: int = 10, seed: int | None = 0
) -> tuple[float, float]:
  """exp(E KL(p(y|x) || p(y))), in each of some parts of the samples.

  "Improved Techniques for Training GANs" (arXiv 1606.03498, section 4). It is
  between 1 and the number of classes, and knows nothing of real images.

  Args:
    logits: [n, classes] of the classifier.
    splits: into how many parts, of equal size but for one, samples are cut.
    seed: of the order in which they are; None leaves them as they are. Samples
      that come class by class would have parts of few classes.

  Returns:
    Mean and deviation of the parts' scores; the deviation divides by their
    number, as everybody's does.

  Raises:
    ValueError: for more parts than samples, and for what is not finite.
  """
  logits = np.asarray(logits, np.float64)
  if logits.ndim != 2 or not np.isfinite(logits).all():
    raise ValueError(
      f"logits are {list(logits.shape)}, but they must be [n, classes] and "
      "finite."
    )
  if not 1 <= splits <= len(logits):
    raise ValueError(
      f"splits={splits} must be between 1 and {len(logits)}, the samples."
    )
  if seed is not None:
    logits = np.random.default_rng(seed).permutation(logits)
  bounds = [part * len(logits) // splits for part in range(splits + 1)]
  scores = [
    _score(logits[first:last]) for first, last in itertools.pairwise(bounds)
  ]
  return float(np.mean(scores)), float(np.std(scores))


def _score(logits: np.ndarray) -> float:
  log_p = logits - _log_sum_exp(logits, 1)
  log_q = _log_sum_exp(log_p, 0) - np.log(len(log_p))
  return float(np.exp((np.exp(log_p) * (log_p - log_q)).sum(1).mean()))


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
  most = x.max(axis, keepdims=True)
  return most + np.log(np.exp(x - most).sum(axis, keepdims=True))
