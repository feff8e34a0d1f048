"""Average precision of boxes, as COCO's evaluation has it.

For each class and threshold of overlap, detections are taken by falling score
and each takes the free box of its image that it overlaps most. Precision is
made monotone and read at 101 recalls. Areas, crowds and "ignore" are not here.
"""

from collections.abc import Sequence

import numpy as np

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10))
_RECALLS = np.linspace(0.0, 1.0, 101)


def intersection_over_union(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Of boxes [n, 4] and [m, 4], (top, left, bottom, right): [n, m]."""
  x, y = np.asarray(x, np.float64)[:, None], np.asarray(y, np.float64)[None]
  low, high = (
    np.maximum(x[..., :2], y[..., :2]),
    np.minimum(x[..., 2:], y[..., 2:]),
  )
  shared = np.prod(np.maximum(high - low, 0), axis=-1)
  areas = (np.prod(z[..., 2:] - z[..., :2], axis=-1) for z in (x, y))
  union = sum(areas) - shared
  return np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0)


def average_precision(
  detections: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
  truth: Sequence[tuple[np.ndarray, np.ndarray]],
  classes: int,
  thresholds: Sequence[float] = THRESHOLDS,
) -> np.ndarray:
  """Returns the average precision, float64 [thresholds, classes].

  Args:
    detections: of each image boxes [n, 4], scores [n] and classes [n].
    truth: of each image boxes [m, 4] and classes [m].
    classes: how many there are; NaN for one without a box.
    thresholds: of intersection over union, from which on a box is found.

  Raises:
    ValueError: if there are not as many images of each.
  """
  if len(detections) != len(truth):
    raise ValueError(
      f"detections are of {len(detections)} images and truth of {len(truth)}."
    )
  found = np.full((len(thresholds), classes), np.nan)
  for own in range(classes):
    boxes = [box[label == own] for box, label in truth]
    total = sum(map(len, boxes))
    if not total:
      continue
    ranked = sorted(
      (
        (-score, image, n)
        for image, (_, scores, labels) in enumerate(detections)
        for n, score in enumerate(scores)
        if labels[n] == own
      ),
    )
    overlaps = [
      intersection_over_union(detections[image][0], boxes[image])
      for image in range(len(boxes))
    ]
    for row, threshold in enumerate(thresholds):
      right = _matched(ranked, overlaps, threshold)
      found[row, own] = _area(right, total)
  return found


def _matched(ranked, overlaps, threshold: float) -> np.ndarray:
  """Which detections, by falling score, take a box: bool [detections]."""
  free = [np.ones(overlap.shape[1], bool) for overlap in overlaps]
  right = np.zeros(len(ranked), bool)
  for place, (_, image, n) in enumerate(ranked):
    overlap = np.where(free[image], overlaps[image][n], -1.0)
    if overlap.size and overlap.max() >= threshold:
      free[image][overlap.argmax()] = False
      right[place] = True
  return right


def _area(right: np.ndarray, total: int) -> float:
  """Mean precision at 101 recalls."""
  if not len(right):
    return 0.0
  hits = np.cumsum(right)
  precision = hits / np.arange(1, len(right) + 1)
  precision = np.maximum.accumulate(precision[::-1])[::-1]
  place = np.searchsorted(hits / total, _RECALLS, side="left")
  reached = place < len(right)
  at = precision[np.minimum(place, len(right) - 1)]
  return float(np.where(reached, at, 0.0).mean())
