"""Aligned patches of pairs, mirrored and turned alike."""

import dataclasses

import numpy as np

from input_pipeline.restoration.degradations import Chain, Place
from input_pipeline.stream import Example

# Pixels of the degraded image that are made around a patch and cut off again,
# so that a patch is that of the whole degraded image: more than bicubic
# interpolation reaches in any number of steps.
_MARGIN = 4


def whole(clean: np.ndarray, scale: int) -> np.ndarray:
  """Without the rows and columns below and right that `scale` leaves over.

  As all test sets of super-resolution are cut.
  """
  height, width = (side // scale * scale for side in clean.shape[:2])
  return clean[:height, :width]


def place_of(
  shape: tuple[int, int],
  rows: slice = slice(None),
  columns: slice = slice(None),
) -> Place:
  """Where those rows and columns of an image [height, width] are."""
  y, x = ((np.arange(side) + 0.5) / side for side in shape)
  return Place(y[rows, None], x[None, columns])


@dataclasses.dataclass(frozen=True)
class Cutter:
  """Cuts patches.

  Attributes:
    scale: sides of a clean image over those of a degraded one.
    size: of a degraded patch.
    flips: whether half of the patches are mirrored.
    rotations: whether they are turned by quarters.
  """

  scale: int
  size: int
  flips: bool
  rotations: bool

  def random(
    self,
    clean: np.ndarray,
    degraded: np.ndarray | Chain,
    rng: np.random.Generator,
  ) -> Example:
    """Cuts a patch at any place.

    Args:
      clean: uint8 [H, W, 3].
      degraded: uint8 [H // scale, W // scale, 3], or what makes it.
      rng: decides all that is random.

    Returns:
      degraded uint8 [size, size, 3] and clean [scale * size, scale * size, 3].
    """
    room = self._room(clean)
    top, left = (int(rng.integers(side, endpoint=True)) for side in room)
    patches = self._cut(clean, degraded, top, left, rng)
    mirrored = self.flips and rng.random() < 0.5
    turns = int(rng.integers(4)) if self.rotations else 0
    return {
      name: _turn(patch, mirrored, turns) for name, patch in patches.items()
    }

  def middle(
    self,
    clean: np.ndarray,
    degraded: np.ndarray | Chain,
    rng: np.random.Generator,
  ) -> Example:
    """Cuts the patch in the middle, as it is; see `random`."""
    top, left = (side // 2 for side in self._room(clean))
    return self._cut(clean, degraded, top, left, rng)

  def _room(self, clean: np.ndarray) -> tuple[int, int]:
    """The greatest top and left of a degraded patch."""
    room = tuple(side // self.scale - self.size for side in clean.shape[:2])
    if min(room) < 0:
      raise ValueError(
        f"an image is {clean.shape[0]} x {clean.shape[1]} pixels, but patches "
        f"are of {self.scale * self.size}: patch_size={self.size} times scale="
        f"{self.scale}."
      )
    return room

  def _cut(self, clean, degraded, top, left, rng):
    clean = whole(clean, self.scale)
    size, scale = self.size, self.scale
    fine = clean[
      _run(scale * top, scale * size), _run(scale * left, scale * size)
    ]
    if isinstance(degraded, np.ndarray):
      coarse = degraded[_run(top, size), _run(left, size)]
      return {"degraded": coarse, "clean": fine}
    # With its margin, as far as the image has one.
    up, before = min(top, _MARGIN), min(left, _MARGIN)
    rows, columns = (
      slice(scale * (first - margin), scale * (first + size + _MARGIN))
      for first, margin in ((top, up), (left, before))
    )
    place = place_of(clean.shape[:2], rows, columns)
    made = degraded(clean[rows, columns], rng, place)
    coarse = made[_run(up, size), _run(before, size)]
    return {"degraded": coarse, "clean": fine}


def _run(first: int, size: int) -> slice:
  return slice(first, first + size)


def _turn(patch: np.ndarray, mirrored: bool, turns: int) -> np.ndarray:
  patch = patch[:, ::-1] if mirrored else patch
  return np.ascontiguousarray(np.rot90(patch, turns))
