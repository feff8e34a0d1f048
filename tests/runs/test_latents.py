"""From images to latents and texts, to a generator, to images again."""

import numpy as np
import pytest
from PIL import Image

import experiment
import sample
import train
from configs import autoencoder, language, lina
from input_pipeline import latents
from input_pipeline.latents import captions, dataset
from tasks import autoencoders
from tests.train_runs import LANGUAGE_TEXT, read_rows
from tools import encode_latents, encode_text
from tools.latents import caption_sources

# Trains three models.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir):
  """A folder with the runs of an autoencoder and a language model."""
  folder = tmp_path_factory.mktemp("latents")
  config = autoencoder.get_config("test")
  config.data.data_dir = data_dir
  config.train_for, config.evaluate_every = "2 steps", "2 steps"
  train.train_and_evaluate(config, str(folder / "autoencoder"))
  config = language.get_config("test")
  config.train_for, config.evaluate_every = "2 steps", "2 steps"
  (folder / "text.txt").write_text(LANGUAGE_TEXT)
  config.data.files = str(folder / "text.txt")
  train.train_and_evaluate(config, str(folder / "language"))
  return folder


@pytest.fixture(scope="module")
def generator(folder, data_dir):
  """The config of a generator of latents of texts, which are encoded."""
  config = lina.get_config("test")
  config.data.data_dir = data_dir
  config.train_for, config.evaluate_every = "2 steps", "2 steps"
  encode_latents.encode_latents(
    config,
    str(folder / "autoencoder"),
    str(folder / "latents"),
    scale="deviation",
  )
  encode_text.encode_text(
    str(folder / "language"),
    str(folder / "text.npz"),
    *caption_sources.of_classes(config, "digit {name}"),
  )
  config.data.latents = str(folder / "latents")
  config.data.text = str(folder / "text.npz")
  info = latents.dataset_info(config.data)
  height, width, channels = info.latent_shape
  with config.unlocked():
    config.model.update(
      {
        "grid": (height, width),
        "patch_size": 1,
        "token_dim": channels,
        "text_width": info.text_shape[1],
      }
    )
  return config


def test_latents_of_texts(folder, generator):
  info = latents.dataset_info(generator.data)
  trained = autoencoders.load(str(folder / "autoencoder"))
  assert info.latent_shape == (4, 4, 2)
  assert info.fingerprint == trained.fingerprint
  assert info.autoencoder == str(folder / "autoencoder")
  assert len(captions.load(generator.data.text).text) == 10
  assert set(dataset.find_splits(folder / "latents")) == {"train", "test"}
  workdir = str(folder / "generator")
  train.train_and_evaluate(generator, workdir)
  losses = [
    row["eval/loss"] for row in read_rows(workdir) if "eval/loss" in row
  ]
  # Velocities begin with zero, so the loss is E|noise - x|^2.
  (batch,) = latents.eval_batches(generator.data, batch_size=360)
  mean, log_variance = np.split(batch["moments"], 2, axis=-1)
  square = (mean**2 + np.exp(log_variance)).mean() * info.scale**2
  assert losses[-1] == pytest.approx(1 + square, rel=0.05)
  config = experiment.load_trained(workdir)
  for out, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
    sample.sample(
      config,
      workdir,
      classes="3,1,0",
      num_samples=2,
      steps=2,
      flow_steps=2,
      seed=seed,
      out=str(folder / out),
    )
  a, b, c = (
    np.asarray(Image.open(folder / name))
    for name in ("a.png", "b.png", "c.png")
  )
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()
