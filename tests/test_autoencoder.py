"""An autoencoder from digits to a picture of them, in this process."""

import json

import numpy as np
import pytest
from PIL import Image

import experiment
import train
from configs import autoencoder
from eval import evaluate, summarize


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A short run."""
  config = autoencoder.get_config("test")
  config.data.data_dir = str(tmp_path_factory.mktemp("data"))
  config.optimizer.learning_rate = 1e-2
  config.train_for = "40 steps"
  config.evaluate_every = config.checkpoint.every = "20 steps"
  workdir = tmp_path_factory.mktemp("autoencoder")
  train.train_and_evaluate(config, str(workdir))
  return workdir


# Evaluates with a program of its own.
@pytest.mark.slow
def test_a_run_learns_and_is_evaluated_alike(finished):
  lines = (finished / "metrics.jsonl").read_text().splitlines()
  rows = [row for row in map(json.loads, lines) if "eval/loss" in row]
  assert [row["step"] for row in rows] == [20, 40]
  assert rows[1]["eval/psnr"] > rows[0]["eval/psnr"] > 8
  config = experiment.load_trained(str(finished))
  report = summarize(config, evaluate(config, str(finished)))
  assert (report["model"], report["examples"]) == ("autoencoder_digits", 360)
  assert report["psnr"] == pytest.approx(rows[1]["eval/psnr"], abs=1e-3)
  assert report["loss"] == pytest.approx(rows[1]["eval/loss"], rel=1e-4)


def test_a_run_shows_images_beside_what_came_back(finished):
  with Image.open(finished / "reconstructions.png") as picture:
    pixels = np.asarray(picture)
  # Four rows of six pairs, with a white line about each image.
  assert pixels.shape == (4 * 66 + 2, 12 * 66 + 2)
  tiles = pixels[2:, 2:].reshape(4, 66, 12, 66)[:, :64, :, :64]
  tiles = tiles[:, 4::8, :, 4::8].swapaxes(1, 2).reshape(24, 2, 8, 8)
  originals, back = tiles[:, 0], tiles[:, 1]
  # The first test image of the digits.
  assert originals[0].max() > 200
  distances = np.abs(originals[:, None] * 1.0 - back[None]).mean((2, 3))
  assert np.diag(distances).mean() < distances.mean()
