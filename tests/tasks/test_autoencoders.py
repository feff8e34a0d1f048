import json

import jax
import numpy as np
import pytest

import models
from models import pretrained, weight_maps
from tasks import autoencoders
from tests import parity_helper

NAME = "autoencoder_digits"


@pytest.fixture(scope="module")
def weights():
  """A model with random variables."""
  model = models.create(NAME)
  init = lambda key: model.init(key, **model.example_inputs())
  shapes = jax.eval_shape(init, jax.random.key(0))
  return model, parity_helper.randomise(shapes, 0)


def write(path, model, variables):
  safetensors = pytest.importorskip("safetensors.numpy")
  weight_map = weight_maps.of(model)
  tensors = pretrained.to_tensors(variables, model, weight_map=weight_map)
  safetensors.save_file(tensors, path)
  return f"{NAME}:{path}"


def test_a_file_of_weights(weights, tmp_path, monkeypatch):
  model, variables = weights
  write(tmp_path / "a.safetensors", model, variables)
  monkeypatch.chdir(tmp_path)
  trained = autoencoders.load(f"{NAME}:a.safetensors")
  jax.tree.map(np.testing.assert_array_equal, trained.variables, variables)
  assert trained.name == NAME
  # Valid in any folder.
  assert trained.source == f"{NAME}:{tmp_path / 'a.safetensors'}"
  same = autoencoders.load(trained.source, fingerprint=trained.fingerprint)
  assert same.fingerprint == trained.fingerprint
  # One bit of one weight.
  bias = variables["params"]["encoder"]["conv_in"]["bias"]
  bias = np.nextafter(bias, np.full_like(bias, np.inf))
  other = jax.tree.map(lambda x: x, variables)
  other["params"]["encoder"]["conv_in"]["bias"] = bias
  source = write(tmp_path / "b.safetensors", model, other)
  with pytest.raises(ValueError, match=r"has other weights .*images would be"):
    autoencoders.load(source, fingerprint=trained.fingerprint)


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("vae.safetensors", "'<model>:vae.safetensors', with one of .*_sdxl"),
    ("resnet50:vae.safetensors", "model 'resnet50', which is none"),
    ("/nowhere", "holds no run"),
  ],
)
def test_what_is_no_autoencoder(source, message):
  with pytest.raises(ValueError, match=message):
    autoencoders.load(source)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("lina_d48w768", "model 'lina_d48w768', which is none: there are"),
    (NAME, "has no checkpoint yet"),
  ],
)
def test_runs_that_have_none(tmp_path, name, message):
  config = {
    "model": {"name": name},
    "data": {"channels": 1},
    "checkpoint": {"keep_last": 1, "best_metric": "loss"},
  }
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(ValueError, match=message):
    autoencoders.load(str(tmp_path))
