"""A network of frames: sets of digits, and that it learns to see them."""

import itertools

import jax
import numpy as np
import pytest

from input_pipeline import visual
from sample_metrics import features, frames, reference


@pytest.fixture
def data():
  config = visual.default_config()
  config.name, config.image_size, config.channels = "moving_digits", 12, 1
  config.num_threads = 0
  config.video.update(dict(frames=2, digits=1, eval_examples=70))
  return config


def test_sets_of_digits():
  pairs = frames.sets(2)
  assert len(pairs) == 55
  assert pairs[0].tolist() == [0, 0]
  assert pairs[-1].tolist() == [9, 9]
  drawn = np.array([[3, 7], [7, 3], [0, 0], [9, 9], [9, 8]])
  numbers = frames.set_numbers(drawn)
  assert np.array_equal(pairs[numbers], np.sort(drawn, axis=1))
  assert frames.counts_of(pairs[numbers]).tolist()[2] == [2] + [0] * 9
  with pytest.raises(ValueError, match="from 0 to 9"):
    frames.set_numbers(np.array([[10, 3]]))


def test_a_sets_logit_is_that_of_how_many_there_are(data):
  data.video.digits = 2
  data.video.eval_examples = 3
  network = frames.FrameNetwork(3)
  shots = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 1), np.uint8)
  variables = network.init(jax.random.key(0), shots)
  seen = frames.FrameFeatures(data, variables)
  made, logits = seen(shots)
  plain, counts = jax.device_get(network.apply(variables, shots))
  np.testing.assert_allclose(made, plain, rtol=1e-5, atol=1e-5)
  assert made.shape == (5, 128)
  assert logits.shape == (5, 55)
  p = np.exp(counts) / np.exp(counts).sum(-1, keepdims=True)
  pairs = list(itertools.combinations_with_replacement(range(10), 2))
  for n, (a, b) in enumerate(pairs):
    likely = 1.0
    for digit in range(10):
      likely = likely * p[:, digit, (a == digit) + (b == digit)]
    np.testing.assert_allclose(np.exp(logits[:, n]), likely, rtol=1e-4)
  assert seen.class_names[1] == "0+1"
  with pytest.raises(ValueError, match="float64"):
    seen(shots / 255)


def test_it_learns_to_see_a_digit(data):
  seen = frames.FrameFeatures(data, frames.train(data, steps=60))
  assert 0.4 < seen.report["classifier_accuracy"] <= 1
  # By hand, of the same frames and their labels.
  right = []
  for shots, labels in reference.examples(data, "eval"):
    assert shots.dtype == np.uint8
    assert len(shots) == len(labels)
    right += list(seen(shots)[1].argmax(-1) == labels)
  assert len(right) == 140
  assert np.mean(right) == seen.report["classifier_accuracy"]
  real = reference.of_split(data, seen)
  assert real.count == 140
  assert real.fingerprint == seen.fingerprint


def test_it_is_trained_once(data, monkeypatch):
  monkeypatch.setattr(frames, "_TRAINED", {})
  trained = []

  def train(data, steps=1):
    trained.append(data.image_size)
    network = frames.FrameNetwork(data.video.digits + 1)
    side = data.image_size
    shots = np.zeros((1, side, side, 1), np.uint8)
    return network.init(jax.random.key(len(trained)), shots)

  monkeypatch.setattr(frames, "train", train)
  data.video.eval_examples = 2
  first = features.create("", data)
  assert features.create("", data) is first
  data.image_size = 16
  other = features.create("", data)
  assert trained == [12, 16]
  assert other.fingerprint != first.fingerprint
  with pytest.raises(ValueError, match="features='runs/x' is of images"):
    features.create("runs/x", data)
