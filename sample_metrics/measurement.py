"""All figures of samples, in one pass over them."""

from typing import Any

import numpy as np

from sample_metrics import statistics
from sample_metrics.features import Features
from sample_metrics.frechet import frechet_distance
from sample_metrics.inception_score import inception_score
from sample_metrics.moments import Moments
from sample_metrics.precision_recall import precision_recall
from sample_metrics.statistics import Statistics
from training import console

_ROWS = 1024
_SPLITS = 10


class Measurement:
  """Figures of samples that come in batches.

  Features are kept only where precision and recall need them: the mean and the
  covariance of any number are d x d numbers.
  """

  def __init__(
    self, features: Features, reference: Statistics, *, neighbours: int = 3
  ):
    """Takes what samples are compared with.

    Args:
      features: the feature network.
      reference: of real images, by the same network.
      neighbours: of precision and recall.

    Raises:
      ValueError: if the reference is of another network.
    """
    statistics.check(reference, features, "reference")
    self._features = features
    self._reference = reference
    self._neighbours = neighbours
    self._moments = Moments()
    self._features_kept: list[np.ndarray] = []
    self._logits: list[np.ndarray] = []
    # None once there was a batch without labels, or of other classes.
    self._correct: int | None = 0

  def update(self, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Adds samples.

    Args:
      images: uint8 [n, height, width, channels].
      labels: int [n], the classes that they were to be of; None if there are
        none, as with texts.

    Raises:
      ValueError: for images that the network is not for.
    """
    if labels is not None and np.shape(labels) != (len(images),):
      raise ValueError(
        f"labels are {list(np.shape(labels))}, but there are {len(images)} "
        "images."
      )
    features, logits = self._features(images)
    self._moments.update(features)
    if self._reference.features is not None:
      self._features_kept.append(features)
    if logits is not None:
      self._logits.append(logits)
    named = logits is not None and self._features.class_names is not None
    if labels is None or not named or self._correct is None:
      self._correct = None
    else:
      self._correct += int((logits.argmax(-1) == labels).sum())

  def result(self) -> dict[str, Any]:
    """The figures of all samples that came.

    Returns:
      `samples`, their number, and `frechet_distance`; `class_accuracy` if all
      had labels and the network knows the classes; `inception_score` and its
      `inception_score_deviation` if it has logits; `precision` and `recall` if
      the reference has its features; and what the network reports of itself.

    Raises:
      ValueError: for too few samples.
    """
    count, reference = self._moments.count, self._reference
    least = max(2, self._neighbours + 1 if self._features_kept else 2)
    if count < least:
      raise ValueError(
        f"{count} samples are too few to measure: give at least {least}."
      )
    self._say_what_is_biased()
    result = {"samples": count}
    if self._correct is not None:
      result["class_accuracy"] = self._correct / count
    result["frechet_distance"] = frechet_distance(
      self._moments.mean,
      self._moments.covariance,
      reference.mean,
      reference.covariance,
    )
    if self._logits:
      score, deviation = inception_score(
        np.concatenate(self._logits), splits=min(_SPLITS, count)
      )
      result["inception_score"] = score
      result["inception_score_deviation"] = deviation
    if self._features_kept:
      precision, recall = precision_recall(
        np.concatenate(self._features_kept),
        reference.features,
        neighbours=self._neighbours,
      )
      result |= {"precision": precision, "recall": recall}
    return result | dict(self._features.report)

  def _say_what_is_biased(self) -> None:
    size = self._reference.mean.size
    counts = {
      "samples": self._moments.count,
      "images of the reference": self._reference.count,
    }
    for what, count in counts.items():
      if count <= size:
        console.say(
          f"{count} {what} for {size} features: their covariance is singular, "
          "and the Frechet distance compares only with others of as many."
        )


def measure(
  images: np.ndarray,
  labels: np.ndarray | None,
  features: Features,
  reference: Statistics,
) -> dict[str, Any]:
  """All figures of samples that are there at once.

  Args:
    images: uint8 [n, height, width, channels].
    labels: int [n], the classes that they were to be of, or None.
    features: the feature network, see `features.create`.
    reference: of real images by the same network: `statistics.load` or
      `reference.of_split`.

  Returns:
    See `Measurement.result`.

  Raises:
    ValueError: for what does not fit.
  """
  measurement = Measurement(features, reference)
  for first in range(0, len(images), _ROWS):
    rows = slice(first, first + _ROWS)
    measurement.update(images[rows], None if labels is None else labels[rows])
  return measurement.result()
