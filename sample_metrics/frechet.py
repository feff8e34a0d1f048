"""The Frechet distance of two normal distributions."""

import numpy as np


def frechet_distance(
  mean_1: np.ndarray,
  covariance_1: np.ndarray,
  mean_2: np.ndarray,
  covariance_2: np.ndarray,
) -> float:
  """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), FID of features of samples.

  "GANs Trained by a Two Time-Scale Update Rule" (arXiv 1706.08500, eq. 6). The
  product of two covariances is not symmetric, and its root by the usual
  routines is complex where one is singular. With C = F F^T the trace of the
  root is the sum of the singular values of F1^T F2, which is real and exact for
  any rank.

  Args:
    mean_1: [d].
    covariance_1: [d, d], positive semi-definite, of any rank.
    mean_2: [d].
    covariance_2: [d, d].

  Returns:
    The squared distance, at least 0, in float64.

  Raises:
    ValueError: for shapes that do not fit each other, and for what is not
      finite.
  """
  arrays = {
    "mean_1": np.asarray(mean_1, np.float64),
    "covariance_1": np.asarray(covariance_1, np.float64),
    "mean_2": np.asarray(mean_2, np.float64),
    "covariance_2": np.asarray(covariance_2, np.float64),
  }
  size = arrays["mean_1"].size
  for name, array in arrays.items():
    fit = (size,) if name.startswith("mean") else (size, size)
    if array.shape != fit or not np.isfinite(array).all():
      raise ValueError(
        f"{name} is {list(array.shape)}, but it must be {list(fit)} and finite."
      )
  first, cov_1, second, cov_2 = arrays.values()
  roots = np.linalg.svd(_factor(cov_1).T @ _factor(cov_2), compute_uv=False)
  apart = np.square(first - second).sum()
  distance = apart + np.trace(cov_1) + np.trace(cov_2) - 2 * roots.sum()
  # Rounding may leave it below zero by an epsilon.
  return max(float(distance), 0.0)


def _factor(covariance: np.ndarray) -> np.ndarray:
  """F [d, rank] with F F^T = `covariance`."""
  values, vectors = np.linalg.eigh(covariance)
  # What rounding made of zeros would come back as its root, 1e8 times larger.
  # This is the bound of `np.linalg.matrix_rank`.
  least = values[-1] * len(values) * np.finfo(np.float64).eps
  kept = values > max(least, 0.0)
  return vectors[:, kept] * np.sqrt(values[kept])
