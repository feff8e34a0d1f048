"""The regions of an image that a map of scores names, cut out and magnified.

The second half of CARVE (arXiv 2509.06461), in NumPy, SciPy and OpenCV, outside
jit; and the two measures of how much an image holds with which the paper
explains why it helps.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import scipy.ndimage
import scipy.special


class Regions(NamedTuple):
  """What was kept of an image.

  Attributes:
    mask: bool [rows, columns].
    box: first row, first column, and those after the last.
    scores: the sum of each region that was kept, the largest first.
    found: how many regions there were.
  """

  mask: np.ndarray
  box: tuple[int, int, int, int]
  scores: tuple[float, ...]
  found: int


def upsample(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Enlarges a grid's scores to an image, bilinearly, float32.

  It is linear: sum over layers and steps first, and enlarge once.

  Args:
    scores: [rows, columns].
    size: height and width of the image, in pixels.
  """
  scores = np.asarray(scores, np.float32)
  return cv2.resize(scores, size[::-1], interpolation=cv2.INTER_LINEAR)


def released_count(found: int) -> int:
  """How many regions the released code keeps: three at least, and a fifth.

  The paper has its number as the most.
  """
  return max(3, int(0.2 * found))


def select(
  scores: np.ndarray, share: float, regions: int | Callable[[int], int]
) -> Regions:
  """Keeps the best connected regions of what has the highest scores.

  Places count from the (1 - share) quantile on. Those that touch by a side are
  one region, and regions are ranked by their sum. One box holds all that are
  kept, so two that are far apart have a box of nearly all there is.

  Args:
    scores: [rows, columns], of a grid's tokens or of pixels.
    share: of the places that count, above 0 and up to 1.
    regions: how many to keep at most, or a function of how many there are, as
      `released_count`.

  Raises:
    ValueError: if scores are no finite map, or an option is out of its range.
  """
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
    raise ValueError(
      f"scores have shape {scores.shape}; they must be finite numbers [rows, "
      "columns]"
    )
  if not 0.0 < share <= 1.0:
    raise ValueError(f"share is {share}; it must be above 0 and up to 1")
  labels, found = scipy.ndimage.label(scores >= np.quantile(scores, 1 - share))
  count = regions(found) if callable(regions) else regions
  if count < 1:
    raise ValueError(f"regions is {count}; one must be kept at least")
  sums = scipy.ndimage.sum_labels(scores, labels, np.arange(1, found + 1))
  # Regions as good as each other in the order of their first places.
  order = np.argsort(-sums, kind="stable")[:count]
  mask = np.isin(labels, order + 1)
  rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
  return Regions(
    mask,
    (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1),
    tuple(float(s) for s in sums[order]),
    found,
  )


def enlarge(regions: Regions, factor: int) -> Regions:
  """Regions of tokens as those of their pixels, with no edge between blurred.

  Args:
    regions: of a grid of tokens.
    factor: side of a token in pixels.
  """
  mask = regions.mask.repeat(factor, 0).repeat(factor, 1)
  return regions._replace(mask=mask, box=tuple(factor * x for x in regions.box))


def refine(
  image: np.ndarray,
  regions: Regions,
  size: tuple[int, int] | None = None,
  *,
  fill: float = 0.0,
  crop: bool = True,
) -> np.ndarray:
  """Makes the image of its regions alone: masked, cropped and magnified.

  A model that saw no black areas in training sees here what it does not know.

  Args:
    image: [height, width, channels].
    regions: of its pixels.
    size: height and width of the result; those of the image if None. The box is
      stretched to it, so that a model of one size takes it; the released code
      scales both sides by the larger factor, and may exceed the image.
    fill: what takes the place of other regions, in the image's unit.
    crop: whether the box is cut out; else places stay where they were.

  Returns:
    [*size, channels], of the image's dtype.

  Raises:
    ValueError: if the regions are of another size.
  """
  image = np.asarray(image)
  if image.ndim != 3 or image.shape[:2] != regions.mask.shape:
    raise ValueError(
      f"image has shape {image.shape}, and regions are of a map of shape "
      f"{regions.mask.shape}; the image must be [height, width, channels] of "
      "that height and width"
    )
  kept = np.where(regions.mask[..., None], image, np.asarray(fill, image.dtype))
  if crop:
    top, left, bottom, right = regions.box
    kept = kept[top:bottom, left:right]
  size = size or image.shape[:2]
  if kept.shape[:2] == size:
    return kept
  large = cv2.resize(
    np.ascontiguousarray(kept), size[::-1], interpolation=cv2.INTER_LINEAR
  )
  # OpenCV drops an axis of one channel.
  return large.reshape(*size, image.shape[2])


def overlap(mask: np.ndarray, other: np.ndarray) -> float:
  """Intersection by union of two masks; 0 if both are empty."""
  union = np.logical_or(mask, other).sum()
  return float(np.logical_and(mask, other).sum() / union) if union else 0.0


def edge_complexity(
  image: np.ndarray, thresholds: tuple[float, float] = (100.0, 200.0)
) -> float:
  """Share of the pixels that Canny's detector calls edges.

  Args:
    image: uint8 [height, width] or [height, width, 3], the latter RGB.
    thresholds: of Canny's hysteresis; the paper has none, these are OpenCV's
      examples'.

  Raises:
    ValueError: if the image is another.
  """
  image = _checked(image)
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
  return float((cv2.Canny(grey, *thresholds) > 0).mean())


def hue_complexity(image: np.ndarray) -> float:
  """Entropy of the histogram of hues in 180 bins, by its largest, ln 180.

  Pixels without colour have the hue 0, as OpenCV has it.

  Args:
    image: uint8 RGB [height, width, 3].

  Raises:
    ValueError: if the image is another.
  """
  image = _checked(image)
  if image.ndim != 3:
    raise ValueError(f"image has shape {image.shape}; hues need 3 channels")
  hues = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 0]
  return hue_entropy(np.bincount(hues.ravel(), minlength=180))


def hue_entropy(counts: np.ndarray) -> float:
  """Entropy of a histogram by ln of its bins, from 0 to 1."""
  shares = np.asarray(counts, np.float64) / np.sum(counts)
  return float(scipy.special.entr(shares).sum() / np.log(len(shares)))


def _checked(image: np.ndarray) -> np.ndarray:
  image = np.asarray(image)
  if image.dtype != np.uint8 or (image.ndim, *image.shape[2:]) not in (
    (2,),
    (3, 3),
  ):
    raise ValueError(
      f"image is {image.dtype} of shape {image.shape}; it must be uint8 "
      "[height, width] or RGB [height, width, 3]"
    )
  return image
