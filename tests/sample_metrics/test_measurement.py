"""Samples against what is kept of real images, with a network of two lines."""

import dataclasses
import json

import numpy as np
import pytest

from sample_metrics import (
  Measurement,
  Statistics,
  frechet_distance,
  inception_score,
  measure,
  precision_recall,
  statistics,
)


class Projection:
  """Features are some random sums of pixels, logits the first of them."""

  spec = "projection"

  def __init__(self, seed=0, size=6, class_names=("a", "b", "c")):
    self.fingerprint = f"projection-{seed}-{size}"
    self.class_names = class_names
    self.report = {"classifier_accuracy": 0.5}
    self._matrix = np.random.default_rng(seed).normal(size=(64, size)) / 99

  def __call__(self, images):
    features = images.reshape(len(images), 64) @ self._matrix
    return features, features[:, :3]


def _images(seed, count):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)


def _statistics(network, images, **fields):
  features, _ = network(images)
  made = Statistics(
    mean=features.mean(0),
    covariance=np.cov(features, rowvar=False),
    count=len(images),
    spec=network.spec,
    fingerprint=network.fingerprint,
    data="noise",
    split="test",
    features=features,
  )
  return dataclasses.replace(made, **fields)


def test_all_figures_of_samples():
  network = Projection()
  samples, real = _images(0, 50), _images(1, 60)
  reference = _statistics(network, real)
  features, logits = network(samples)
  labels = logits.argmax(-1)
  labels[:20] = 3
  distance = frechet_distance(
    features.mean(0),
    np.cov(features, rowvar=False),
    reference.mean,
    reference.covariance,
  )
  score, deviation = inception_score(logits)
  precision, recall = precision_recall(features, reference.features)
  result = measure(samples, labels, network, reference)
  assert result == pytest.approx(
    {
      "samples": 50,
      "class_accuracy": 0.6,
      "frechet_distance": distance,
      "inception_score": score,
      "inception_score_deviation": deviation,
      "precision": precision,
      "recall": recall,
      "classifier_accuracy": 0.5,
    }
  )
  measurement = Measurement(network, reference)
  for part in (slice(0, 1), slice(1, 30), slice(30, 50)):
    measurement.update(samples[part], labels[part])
  assert measurement.result() == pytest.approx(result)


def test_what_cannot_be_measured_is_left_out():
  samples, network = _images(0, 20), Projection()
  reference = _statistics(network, _images(1, 30), features=None)
  result = measure(samples, None, network, reference)
  assert not {"class_accuracy", "precision", "recall"} & set(result)
  foreign = Projection(class_names=None)
  assert "class_accuracy" not in measure(
    samples, np.zeros(20, int), foreign, reference
  )
  measurement = Measurement(network, reference)
  measurement.update(samples, np.zeros(20, int))
  measurement.update(samples, None)
  measurement.update(samples, np.zeros(20, int))
  assert "class_accuracy" not in measurement.result()


def test_a_singular_covariance_is_told(capsys):
  network = Projection()
  reference = _statistics(network, _images(1, 30))
  measure(_images(0, 7), None, network, reference)
  assert capsys.readouterr().out == ""
  measure(_images(0, 6), None, network, reference)
  said = capsys.readouterr().out
  assert said.startswith("6 samples for 6 features: their covariance is sing")


def test_what_does_not_fit_is_refused():
  network = Projection()
  reference = _statistics(network, _images(1, 30))
  with pytest.raises(ValueError, match=r"3 samples are too few .* at least 4"):
    measure(_images(0, 3), None, network, reference)
  with pytest.raises(ValueError, match=r"labels are \[4\], but there are 5"):
    measure(_images(0, 5), np.zeros(4, int), network, reference)
  with pytest.raises(ValueError, match=r"reference are of .*projection-0-6"):
    measure(_images(0, 5), None, Projection(seed=1), reference)


@pytest.mark.parametrize("features", [True, False])
def test_a_file_of_statistics(tmp_path, features):
  network = Projection()
  reference = _statistics(network, _images(1, 30))
  kept = reference.features.astype(np.float32) if features else None
  reference = dataclasses.replace(reference, features=kept)
  path = str(tmp_path / "reference.npz")
  statistics.save(path, reference)
  loaded = statistics.load(path, network)
  for field in dataclasses.fields(Statistics):
    ours, theirs = (getattr(x, field.name) for x in (loaded, reference))
    np.testing.assert_array_equal(ours, theirs)
  # Nothing that only this code reads.
  with np.load(path) as arrays:
    assert json.loads(str(arrays["about"]))["data"] == "noise"


def test_a_file_of_another_network(tmp_path):
  path = str(tmp_path / "reference.npz")
  statistics.save(path, _statistics(Projection(), _images(1, 30)))
  with pytest.raises(ValueError, match="reference_statistics") as error:
    statistics.load(path, Projection(seed=1))
  for named in (path, "projection-0-6", "projection-1-6", "--features=proj"):
    assert named in str(error.value)


def test_a_file_that_is_damaged(tmp_path):
  path = tmp_path / "reference.npz"
  statistics.save(str(path), _statistics(Projection(), _images(1, 30)))
  content = path.read_bytes()
  other = tmp_path / "other.npz"
  np.savez(other, mean=np.zeros(3))
  path.write_bytes(content[: len(content) // 2])
  for damaged in (path, other):
    with pytest.raises(ValueError, match="is no file that tools/reference_"):
      statistics.load(str(damaged), Projection())
  mean = _statistics(Projection(), _images(1, 30), mean=np.zeros(5))
  with pytest.raises(ValueError, match="do not fit"):
    statistics.check(mean, Projection(), "reference")
