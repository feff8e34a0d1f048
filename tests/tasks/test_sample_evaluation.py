"""What eval.py does of a generator, with a feature network that is plain."""

import json

import numpy as np
import pytest

import eval as eval_program
from configs import lina
from sample_metrics import features as feature_networks
from tasks import image_sampling, sample_evaluation


class Pixels:
  """Features are eight pixels; the class is where the first row is largest."""

  spec = "pixels"
  fingerprint = "0"
  class_names = tuple("0123456789")

  def __init__(self):
    self.report = {"classifier_accuracy": 0.5}
    self.seen = []

  def __call__(self, images):
    self.seen.append(images)
    x = images[:, 3, :, 0].astype(np.float32) / 255
    logits = np.pad(images[:, 0, :, 0] / 255.0, ((0, 0), (0, 2)))
    return x, logits


@pytest.fixture
def config(tmp_path_factory):
  config = lina.get_config("test")
  config.data.data_dir = str(tmp_path_factory.getbasetemp())
  config.sampling.update(steps=2, flow_steps=2)
  return config


# Compiles the evaluation and the sampler.
@pytest.mark.slow
def test_the_line_of_json(config, monkeypatch, capsys):
  pixels, made = Pixels(), []
  batches = image_sampling.batches

  def spied(*args, **options):
    for batch in batches(*args, **options):
      made.append(batch.images)
      yield batch

  monkeypatch.setattr(feature_networks, "create", lambda spec, data: pixels)
  monkeypatch.setattr(image_sampling, "batches", spied)
  eval_program.main(config, "random", num_samples=130, guidance="3", seed=2)
  text, line = capsys.readouterr().out.strip().splitlines()[-2:]
  found = json.loads(line)
  images = np.concatenate(made)
  assert images.shape == (130, 8, 8, 1)
  # Classes in turn; batches of 120 are no other.
  x, logits = Pixels()(images)
  right = logits.argmax(-1) == np.arange(130) % 10
  assert found["class_accuracy"] == pytest.approx(right.mean())
  real = np.concatenate(pixels.seen[: -len(made)])
  assert real.shape == (360, 8, 8, 1)
  y, _ = Pixels()(real)
  a, b = np.cov(x.T.astype(float)), np.cov(y.T.astype(float))
  roots = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0))
  distance = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b)
  distance -= 2 * roots.sum()
  assert found["frechet_distance"] == pytest.approx(distance, rel=1e-3)
  assert (found["samples"], found["examples"]) == (130, 360)
  assert (found["guidance"], found["steps"], found["flow_steps"]) == (3, 2, 2)
  assert (found["seed"], found["classifier_accuracy"]) == (2, 0.5)
  assert "averaged" not in found
  assert f"class accuracy {right.mean():.2%}" in text
  assert "130 samples with guidance 3.0 in 2 steps" in text


def test_what_is_not_given_is_of_the_config(config):
  assert sample_evaluation.options_of(config) == {
    "num_samples": 0,
    "guidance": 2.4,
    "steps": 2,
    "seed": 0,
    "features": "",
    "statistics": "",
  }
  given = {"num_samples": 7, "guidance": "1,2,3", "steps": 3, "features": "x"}
  options = sample_evaluation.options_of(config, **given)
  assert options["guidance"] == [1, 2, 3]
  assert (options["num_samples"], options["features"]) == (7, "x")


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"num_samples": -2}, "num_samples=-2 must be 0 or more"),
    ({"guidance": "1,2,3"}, "guidance has 3 numbers; there are steps=2"),
    ({"guidance": "-1"}, "guidance=-1.0 must be finite"),
    ({"guidance": "much"}, "guidance='much' is no number"),
    ({"steps": -3}, "steps=-3"),
    ({"step": 3}, "step is none of num_samples, guidance"),
  ],
)
def test_options_that_do_not_fit(config, given, message):
  with pytest.raises(ValueError, match=message):
    sample_evaluation.options_of(config, **given)
