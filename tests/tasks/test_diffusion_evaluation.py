"""What eval.py does of a diffusion model, with a network of frames."""

import itertools
import json

import numpy as np
import pytest

import eval as eval_program
import tasks
from configs import diffusion
from input_pipeline import visual
from sample_metrics import frames, motion
from tasks import diffusion_evaluation, diffusion_sampling


class Pixels:
  """Features are six pixels; the set is where the others are largest."""

  spec = ""
  fingerprint = "0"
  class_names = tuple(f"{a}+{b}" for a, b in frames.sets(2))

  def __init__(self):
    self.report = {"classifier_accuracy": 0.5}

  def __call__(self, images):
    flat = images.reshape(len(images), -1) / 255.0
    return flat[:, 100:106].astype(np.float32), flat[:, :55]


@pytest.fixture
def config():
  return diffusion.get_config("test")


# Compiles the evaluation and the sampler.
@pytest.mark.slow
def test_the_line_of_json(config, monkeypatch, capsys):
  made = []
  samples = diffusion_sampling.samples

  def spied(*args, **options):
    made.append((args[3], options, samples(*args, **options)))
    return made[-1][2]

  monkeypatch.setattr(frames, "trained_on", lambda data: Pixels())
  monkeypatch.setattr(diffusion_sampling, "samples", spied)
  eval_program.main(
    config,
    "random",
    num_samples=11,
    guidance="3",
    seed=2,
    steps=2,
    solver="dpm_solver",
  )
  text, line = capsys.readouterr().out.strip().splitlines()[-2:]
  found = json.loads(line)
  ((condition, options, arrays),) = made
  assert arrays.shape == (11, 4, 16, 16, 1)
  assert (options["guidance"], options["seed"]) == (3, 2)
  pixels = np.round((np.clip(arrays, -1, 1) + 1) * 127.5).astype(np.uint8)
  shots = pixels.reshape(44, 16, 16, 1)
  x, logits = Pixels()(shots)
  pairs = list(itertools.combinations_with_replacement(range(10), 2))
  wanted = [pairs.index(tuple(row)) for row in condition["label"]]
  right = logits.argmax(-1) == np.repeat(wanted, 4)
  assert found["class_accuracy"] == pytest.approx(right.mean())
  real = next(iter(visual.eval_batches(config.data, batch_size=20)))
  y, _ = Pixels()(real["image"].reshape(80, 16, 16, 1))
  a, b = np.cov(x.T.astype(float)), np.cov(y.T.astype(float))
  roots = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0))
  distance = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b)
  distance -= 2 * roots.sum()
  assert found["frechet_distance"] == pytest.approx(distance, rel=1e-3)
  assert found["motion_consistency"] == motion.motion(pixels).consistency
  assert (found["samples"], found["examples"]) == (44, 20)
  assert (found["guidance"], found["steps"]) == (3, 2)
  assert (found["solver"], found["method"]) == ("dpm_solver", "full")
  assert f"class accuracy {right.mean():.2%}" in text
  assert "44 images with guidance 3.0 in 2 steps" in text


def test_images_are_measured_with_their_classes(monkeypatch):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (50, 8, 8, 1), np.uint8)
  real = diffusion_evaluation.sample_metrics.Statistics(
    mean=np.zeros(6),
    covariance=np.eye(6),
    count=9,
    spec="",
    fingerprint="0",
    data="",
    split="",
  )

  class Flat(Pixels):
    def __call__(self, images):
      flat = images.reshape(len(images), -1) / 255.0
      return flat[:, :6], flat[:, :10]

  monkeypatch.setattr(
    diffusion_evaluation.feature_networks, "create", lambda *args: Flat()
  )
  monkeypatch.setattr(
    diffusion_evaluation.sample_metrics, "of_split", lambda *args: real
  )
  data = diffusion.get_config("digits").data
  quality = diffusion_evaluation.Quality(data)
  labels = np.arange(50) % 10
  found = quality(images, labels)
  right = images.reshape(50, -1)[:, :10].argmax(1) == labels
  assert found["class_accuracy"] == right.mean()
  assert found["samples"] == 50
  assert "motion_consistency" not in found


def test_videos_are_measured_frame_by_frame(config, monkeypatch):
  monkeypatch.setattr(frames, "trained_on", lambda data: Pixels())
  quality = diffusion_evaluation.Quality(config.data)
  rng = np.random.default_rng(0)
  videos = rng.integers(0, 200, (6, 4, 16, 16, 1), np.uint8)
  labels = rng.integers(0, 10, (6, 2))
  pairs = list(itertools.combinations_with_replacement(range(10), 2))
  # The network sees the set in all frames but the first.
  flat = videos.reshape(6, 4, 256)
  for n, row in enumerate(labels):
    flat[n, 1:, pairs.index(tuple(sorted(row)))] = 255
  found = quality(videos, labels)
  assert found["class_accuracy"] == 0.75
  assert found["samples"] == 24
  expected = motion.motion(videos)
  assert (found["motion_consistency"], found["motion_amount"]) == expected


def test_what_samples_are_of():
  config = diffusion.get_config("test")
  task = tasks.create(config, visual.dataset_info(config.data))
  label = diffusion_evaluation.conditions(task, 600)["label"]
  assert label.shape == (600, 2)
  assert label.dtype == np.int32
  assert (label[:, 0] <= label[:, 1]).all()
  # As often as in the data: a pair of equal ones one time in ten.
  assert abs((label[:, 0] == label[:, 1]).mean() - 0.1) < 0.04
  again = diffusion_evaluation.conditions(task, 20)["label"]
  assert np.array_equal(again, label[:20])
  config = diffusion.get_config("digits")
  info = visual.DatasetInfo(0, tuple("0123456789"), (8, 8, 1))
  task = tasks.create(config, info)
  label = diffusion_evaluation.conditions(task, 25)["label"]
  assert np.array_equal(label, np.arange(25) % 10)


def test_what_is_not_given_is_of_the_config(config):
  assert diffusion_evaluation.options_of(config) == {
    "num_samples": 0,
    "seed": 0,
    "guidance": config.sampling.guidance,
    "steps": 4,
    "solver": "ddim",
    "method": "full",
    "method_options": {},
    "features": "",
    "statistics": "",
  }
  given = {
    "num_samples": 7,
    "guidance": "2.5",
    "steps": 3,
    "method_options": "decay=0.5",
  }
  options = diffusion_evaluation.options_of(config, **given)
  assert (options["num_samples"], options["steps"]) == (7, 3)
  assert options["guidance"] == 2.5
  assert options["method_options"] == {"decay": 0.5}
  for wrong, message in (
    ({"flow_steps": 3}, "flow_steps is none of"),
    ({"guidance": "1,2"}, "one number"),
    ({"num_samples": -3}, "num_samples=-3"),
    ({"solver": "heun"}, "solver='heun'"),
  ):
    with pytest.raises(ValueError, match=message):
      diffusion_evaluation.options_of(config, **wrong)
