"""Average precision against COCO's own code and by hand."""

import contextlib
import io

import numpy as np
import pytest

from sample_metrics import boxes
from tests import parity_helper


def _drawn(seed, images=12, classes=3):
  """Truth, and detections near it, with some of nothing."""
  rng = np.random.default_rng(seed)
  truth, detections = [], []
  for _ in range(images):
    count = rng.integers(0, 4)
    low = rng.uniform(0, 30, (count, 2))
    true = np.hstack([low, low + rng.uniform(5, 30, (count, 2))])
    labels = rng.integers(0, classes, count)
    truth.append((true, labels))
    near = true.repeat(2, axis=0) + rng.normal(0, 2, (2 * count, 4))
    low = rng.uniform(0, 30, (2, 2))
    false = np.hstack([low, low + rng.uniform(5, 30, (2, 2))])
    found = np.vstack([near, false])
    own = np.concatenate([labels.repeat(2), rng.integers(0, classes, 2)])
    detections.append((found, rng.permutation(len(found)) / 100 + seed, own))
  return detections, truth


def _cocos(detections, truth, classes):
  coco = parity_helper.or_skip(__import__, "pycocotools.coco").coco
  from pycocotools.cocoeval import COCOeval

  def described(box, label, image, n):
    top, left, bottom, right = map(float, box)
    size = [left, top, right - left, bottom - top]
    return {
      "id": n,
      "image_id": image,
      "category_id": int(label),
      "bbox": size,
      "area": size[2] * size[3],
      "iscrowd": 0,
    }

  with contextlib.redirect_stdout(io.StringIO()):
    known = coco.COCO()
    known.dataset = {
      "images": [{"id": n} for n in range(len(truth))],
      "categories": [{"id": n} for n in range(classes)],
      "annotations": [
        described(box, label, image, 1 + 100 * image + n)
        for image, (own, labels) in enumerate(truth)
        for n, (box, label) in enumerate(zip(own, labels, strict=True))
      ],
    }
    known.createIndex()
    made = known.loadRes(
      [
        {**described(box, label, image, 0), "score": float(score)}
        for image, rows in enumerate(detections)
        for box, score, label in zip(*rows, strict=True)
      ]
    )
    evaluation = COCOeval(known, made, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
  # [thresholds, recalls, classes], of all areas and at most 100 detections.
  return evaluation.eval["precision"][..., 0, -1].mean(1)


@pytest.mark.parity
@pytest.mark.parametrize("seed", [0, 1])
def test_average_precision_is_cocos(seed):
  detections, truth = _drawn(seed)
  found = boxes.average_precision(detections, truth, 3)
  np.testing.assert_allclose(found, _cocos(detections, truth, 3), atol=1e-9)
  assert 0.1 < found.mean() < 0.9


def test_by_hand():
  box = np.array([[0.0, 0.0, 10.0, 10.0]])
  other = np.array([[20.0, 20.0, 30.0, 30.0]])
  half = np.array([[0.0, 0.0, 10.0, 5.0]])
  np.testing.assert_allclose(
    boxes.intersection_over_union(box, np.vstack([box, half, other])),
    [[1.0, 0.5, 0.0]],
  )
  truth = [(np.vstack([box, other]), np.zeros(2, int))]

  def of(*rows):
    found = [
      (np.vstack(x), np.array(s), np.zeros(len(s), int)) for x, s in rows
    ]
    return boxes.average_precision(found, truth, 2, thresholds=(0.5, 0.6))

  found = of(([box, other], [0.9, 0.8]))
  np.testing.assert_array_equal(found, [[1, np.nan], [1, np.nan]])
  # The first of two is wrong: precision 1/2 up to half of the recalls.
  (low, _), (high, _) = of(([half, box], [0.9, 0.8]))
  assert low == pytest.approx(51 / 101)
  assert high == pytest.approx(51 / 101 / 2)
  # A box is found once.
  (twice, _), _ = of(([box, box, other], [0.9, 0.8, 0.7]))
  assert twice == pytest.approx((51 + 50 * 2 / 3) / 101)
  (nothing, _), _ = of((np.zeros((1, 4)), [0.1]))
  assert nothing == 0
  with pytest.raises(ValueError, match="detections are of 0 images and truth"):
    boxes.average_precision([], truth, 2)
