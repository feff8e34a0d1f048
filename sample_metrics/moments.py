"""Mean and covariance of rows that come in batches."""

import numpy as np


class Moments:
  """Mean and covariance in float64, of any number of rows in d x d memory.

  Batches are joined by the formula of Chan, Golub and LeVeque ("Updating
  Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979): sums
  of squares are about the mean of each batch, so that nothing cancels where
  means are large.
  """

  def __init__(self):
    self.count = 0
    self._mean = np.zeros(0)
    self._scatter = np.zeros((0, 0))

  def update(self, rows: np.ndarray) -> None:
    """Adds rows [n, d].

    Raises:
      ValueError: for another d than before, and for what is not finite.
    """
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or (self.count and rows.shape[1] != len(self._mean)):
      fit = f"[n, {len(self._mean)}]" if self.count else "[n, d]"
      raise ValueError(f"rows are {list(rows.shape)}, but they must be {fit}.")
    if not np.isfinite(rows).all():
      raise ValueError("rows must be finite, but there are NaN or infinity.")
    if not len(rows):
      return
    mean = rows.mean(0)
    centred = rows - mean
    scatter = centred.T @ centred
    if not self.count:
      self.count, self._mean, self._scatter = len(rows), mean, scatter
      return
    total = self.count + len(rows)
    step = mean - self._mean
    self._scatter += scatter
    self._scatter += np.outer(step, step) * (self.count * len(rows) / total)
    self._mean = self._mean + step * (len(rows) / total)
    self.count = total

  @property
  def mean(self) -> np.ndarray:
    """float64 [d]."""
    return self._mean

  @property
  def covariance(self) -> np.ndarray:
    """float64 [d, d], unbiased, as `np.cov` has it.

    Raises:
      ValueError: of fewer than two rows.
    """
    if self.count < 2:
      raise ValueError(f"a covariance needs two rows, not {self.count}.")
    return self._scatter / (self.count - 1)
