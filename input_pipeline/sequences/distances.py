"""Distances of points, of which the long ones are to be told from the short.

Ours, a toy of what protein structure models complete by triangles: who knows
that j is near k, and how far k is from i, knows how far j is from i.
"""

import dataclasses

import numpy as np

from input_pipeline import checks
from input_pipeline.stream import Example


@dataclasses.dataclass(frozen=True)
class Distances:
  """Points in a unit cube; labels are bins of their distances.

  A pair's numbers are a signal exp(-(distance / reach)^2) with noise, which
  says nothing of far points, and whether it is a point with itself. Pairs whose
  distance is above `reach` have a label. A point's own numbers are its
  distances to landmarks, places that are always the same; pairs do not know of
  them.

  Attributes:
    points: of an example.
    space: dimensions of the cube, 1 for points on a line.
    landmarks: how many places points know their distance to.
    reach: distance at which the signal has fallen to 1 / e.
    noise: standard deviation of the signal's.
    classes: bins of equal width from `reach` to 1, the last without an end.
  """

  points: int = 16
  space: int = 2
  landmarks: int = 4
  reach: float = 0.3
  noise: float = 0.02
  classes: int = 8

  groups = ()

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if one does not fit.
    """
    for field, least in (("points", 2), ("space", 1), ("landmarks", 1)):
      checks.check_integer(field, getattr(self, field), least)
    checks.check_integer("classes", self.classes, 2)
    if not 0 < self.reach < 1:
      raise ValueError(f"reach is {self.reach}; it must be between 0 and 1.")
    if self.noise < 0:
      raise ValueError(f"noise is {self.noise}; it must be at least 0.")

  @property
  def vocabulary_size(self) -> int:
    """Numbers of a point."""
    return self.landmarks

  def example(self, rng: np.random.Generator, split: str) -> Example:
    """Makes an example.

    Returns:
      inputs float32 [points, landmarks]; pairs float32 [points, points, 2];
      targets int32 and weights float32, both [points, points].
    """
    del split
    places = rng.random((self.points, self.space))
    # Of a generator of their own.
    landmarks = np.random.default_rng(0).random((self.landmarks, self.space))
    known, distance = (
      np.sqrt(((places[:, None] - others[None]) ** 2).sum(-1))
      for others in (landmarks, places)
    )
    noise = np.triu(rng.normal(0, self.noise, distance.shape))
    signal = np.exp(-((distance / self.reach) ** 2)) + noise + noise.T
    width = (1 - self.reach) / self.classes
    bins = (distance - self.reach) / width
    return {
      "inputs": known.astype(np.float32),
      "pairs": np.stack(
        [signal, np.eye(self.points)], axis=-1, dtype=np.float32
      ),
      "targets": np.clip(bins, 0, self.classes - 1).astype(np.int32),
      "weights": (distance > self.reach).astype(np.float32),
    }
