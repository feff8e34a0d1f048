"""Precision and recall of samples against real images."""

from collections.abc import Iterator

import numpy as np

# Distances that are in memory at once, in bytes.
_BLOCK_BYTES = 2**27


def precision_recall(
  samples: np.ndarray,
  real: np.ndarray,
  *,
  neighbours: int = 3,
  block_bytes: int = _BLOCK_BYTES,
) -> tuple[float, float]:
  """How many samples look real, and how much of the real they cover.

  "Improved Precision and Recall Metric for Assessing Generative Models" (arXiv
  1904.06991, eq. 1 and 2): each set is taken to fill the balls around its
  points that reach to the `neighbours`-th nearest other one. Precision is the
  share of samples within the balls of the real, recall that of the real within
  the balls of the samples.

  Args:
    samples: features [n, d] of samples.
    real: features [m, d] of real images, best as many.
    neighbours: k of the paper.
    block_bytes: memory of the distances that are there at once.

  Returns:
    (precision, recall), each in [0, 1].

  Raises:
    ValueError: for shapes that do not fit, too few rows, or what is not finite.
  """
  sets = {"samples": np.asarray(samples), "real": np.asarray(real)}
  for name, rows in sets.items():
    if rows.ndim != 2 or len(rows) <= neighbours or neighbours < 1:
      raise ValueError(
        f"{name} are {list(rows.shape)}, but for neighbours={neighbours}, at "
        "least 1, they must be [n, d] with more rows than that."
      )
    if not np.isfinite(rows).all():
      raise ValueError(f"{name} must be finite.")
  samples, real = sets.values()
  if samples.shape[1] != real.shape[1]:
    raise ValueError(
      f"samples have {samples.shape[1]} features and real {real.shape[1]}: "
      "they are of different networks."
    )
  # The product in `_squared_distances` cancels less about the mean.
  centre = real.mean(0, dtype=np.float64)
  samples, real = samples - centre, real - centre
  sample_radii = _radii(samples, neighbours, block_bytes)
  real_radii = _radii(real, neighbours, block_bytes)
  precise, recalled = 0, np.zeros(len(real), bool)
  for first, distances in _squared_distances(samples, real, block_bytes):
    radii = sample_radii[first : first + len(distances), None]
    precise += (distances <= real_radii[None]).any(1).sum()
    recalled |= (distances <= radii).any(0)
  return float(precise / len(samples)), float(recalled.mean())


def _radii(rows: np.ndarray, neighbours: int, block_bytes: int) -> np.ndarray:
  """Squared distance of each row [n] to its `neighbours`-th nearest other."""
  radii = []
  for first, distances in _squared_distances(rows, rows, block_bytes):
    # A row is the nearest to itself, whatever rounding makes of it.
    itself = np.arange(len(distances))
    distances[itself, first + itself] = 0.0
    radii.append(np.partition(distances, neighbours, axis=1)[:, neighbours])
  return np.concatenate(radii)


def _squared_distances(
  a: np.ndarray, b: np.ndarray, block_bytes: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Blocks [some of n, m] of the distances of `a` and `b`, and their first row.

  |a|^2 + |b|^2 - 2 a b in float64; a block may be written to.
  """
  squares = np.square(b).sum(1)
  rows = max(block_bytes // (8 * len(b)), 1)
  for first in range(0, len(a), rows):
    part = a[first : first + rows]
    distances = part @ b.T
    distances *= -2
    distances += squares[None]
    distances += np.square(part).sum(1)[:, None]
    yield first, np.maximum(distances, 0, out=distances)
