"""Networks that make features: a classifier trained on the spot, and others."""

import json

import jax
import numpy as np
import pytest

import train
from configs import common
from input_pipeline import images as image_data
from sample_metrics import classifier, features, of_split
from tests import parity_helper
from tools import torch_imports
from training import sharding


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


def _digits(data_dir, **fields):
  data = image_data.default_config()
  data.update(dict(data_dir=data_dir, channels=1, image_size=8, **fields))
  return data


@pytest.fixture
def untrained(monkeypatch):
  monkeypatch.setattr(classifier, "_TRAINED", {})


# The whole recipe, as the figures of samples rest on it.
@pytest.mark.slow
def test_the_classifier_knows_digits(data_dir):
  data = _digits(data_dir)
  # As in eval.py, where the mesh has all devices.
  with jax.set_mesh(sharding.create_mesh(common.get_config().mesh)):
    network = features.create("", data)
    assert network.report["classifier_accuracy"] >= 0.97
    assert len(network.class_names) == 10
    reference = of_split(data, network)
    part = of_split(data, network, split="test[40:47]", keep_features=False)
  assert reference.features.shape == (360, 64)
  assert reference.count == 360
  assert reference.split == "test"
  np.testing.assert_allclose(
    reference.covariance, np.cov(reference.features.T), atol=1e-5
  )
  assert part.features is None
  np.testing.assert_allclose(
    part.mean, reference.features[40:47].mean(0), atol=1e-5
  )
  assert features.create("", _digits(data_dir)) is network


# Trains twice.
@pytest.mark.slow
def test_the_classifier_has_the_same_bits_again(data_dir, untrained):
  few = dict(train_split="train[:40]", eval_split="test[:12]")
  first = features.create("", _digits(data_dir, **few))
  classifier._TRAINED.clear()
  again = features.create("", _digits(data_dir, **few))
  assert again is not first
  assert again.fingerprint == first.fingerprint
  images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
  for ours, theirs in zip(again(images), first(images), strict=True):
    assert len(ours) == 300
    np.testing.assert_array_equal(ours, theirs)
  # Padding reaches nobody.
  for whole, part in zip(first(images), first(images[290:]), strict=True):
    np.testing.assert_array_equal(whole[290:], part)
  config, variables = first._setup.config, first._variables
  moved = jax.tree.map(lambda x: x.at[0].add(1e-6), variables)
  assert classifier._fingerprint(config, variables) == first.fingerprint
  assert classifier._fingerprint(config, moved) != first.fingerprint
  config = config.copy_and_resolve_references()
  config.data.std = (0.3,)
  assert classifier._fingerprint(config, variables) != first.fingerprint
  with pytest.raises(ValueError, match=r"\[n, height, width, 1\]"):
    first(np.zeros((2, 8, 8, 3), np.uint8))


# A run of no steps compiles what a run does.
@pytest.mark.slow
def test_the_classifier_of_a_run(data_dir, tmp_path):
  config = common.get_config("classification")
  config.data = classifier._config(_digits(data_dir)).data
  config.data.image_size = 16
  config.model = dict(
    name="resnet18", stem_widths=(8,) * 3, widths=(8, 12), depths=(1, 1)
  )
  config.batch_size = config.eval_batch_size = 120
  config.train_for = "0 steps"
  workdir = str(tmp_path / "run")
  state = train.train_and_evaluate(config, workdir)
  network = features.create(workdir, _digits(data_dir))
  assert network.spec == workdir
  images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)
  made, logits = network(images)
  task = network._setup.task
  inputs = task.normalize(images)
  variables = state.variables()
  maps = task.model.apply(variables, inputs, method="features")
  np.testing.assert_allclose(made, maps[-1].mean((1, 2)), atol=1e-5)
  expected = task.model.apply(variables, inputs)
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  # Of its own evaluation split, whatever the samples are.
  evaluated = json.loads((tmp_path / "run/metrics.jsonl").read_text())
  assert network.report["classifier_accuracy"] == pytest.approx(
    evaluated["eval/accuracy"]
  )


@pytest.mark.parametrize(
  ("spec", "fields", "message"),
  [
    ("nowhere", {}, "nowhere"),
    (
      "inception",
      {},
      "features='inception' is no file: give 'inception:<path>",
    ),
    ("inception:nowhere.pth", {}, "is no file"),
  ],
)
def test_there_is_no_such_network(data_dir, spec, fields, message):
  with pytest.raises(ValueError, match=message):
    features.create(spec, _digits(data_dir, **fields))


# Makes a network of 24 million parameters and runs it three times.
@pytest.mark.slow
@pytest.mark.parity
def test_inception_is_that_of_fidelity(tmp_path):
  torch, fidelity = parity_helper.or_skip(torch_imports.import_fidelity)
  path = tmp_path / "weights.pth"
  torch.manual_seed(0)
  make = fidelity.FeatureExtractorInceptionV3
  with pytest.MonkeyPatch.context() as patch:
    # The library has no network without weights.
    patch.setattr(make, "load_state_dict", lambda self, state: None)
    torch.save({}, path)
    theirs = make("", ["2048"], feature_extractor_weights_path=str(path))
  torch.save(theirs.state_dict(), path)
  network = features.create(f"inception:{path}", image_data.default_config())
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 20, 30, 3), np.uint8)
  made, logits = network(images)
  assert logits.shape == (2, 1008)
  (expected,) = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  np.testing.assert_allclose(made, expected.numpy(), rtol=1e-5, atol=1e-6)
  assert network.class_names is None
  grey, _ = network(images[:1, ..., :1])
  colours, _ = network(images[:1, ..., [0, 0, 0]])
  np.testing.assert_array_equal(grey, colours)
  with pytest.raises(ValueError, match="1 or 3"):
    network(images[..., :2])
  path.write_bytes(b"")
  with pytest.raises(ValueError, match="has no weights of this network"):
    features.create(f"inception:{path}", image_data.default_config())


@pytest.mark.parity
def test_weights_that_run_code_are_refused(tmp_path):
  torch, _ = parity_helper.or_skip(torch_imports.import_fidelity)
  path = tmp_path / "weights.pth"
  torch.save({"fc.weight": print}, path)
  with pytest.raises(ValueError, match="has no weights of this network"):
    features.create(f"inception:{path}", image_data.default_config())
