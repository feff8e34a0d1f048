"""The tool that writes statistics of real images."""

import types

import numpy as np
import pytest

from configs import lina
from sample_metrics import features, statistics
from tools import reference_statistics


@pytest.fixture
def network(monkeypatch):
  """Two features of an image: the sums of its halves."""
  halves = lambda x: x.reshape(len(x), 2, -1).sum(-1).astype(np.float32)

  class Halves:
    spec, fingerprint, class_names = "halves", "halves-0", None
    report = types.MappingProxyType({"classifier_accuracy": 0.5})

    def __call__(self, images):
      return halves(images), None

  monkeypatch.setattr(features, "create", lambda spec, data: Halves())
  return Halves()


@pytest.fixture
def run(monkeypatch, tmp_path):
  def run(out, latents="", **options):
    config = lina.get_config("test")
    config.data.update(data_dir=str(tmp_path), latents=latents)
    args = {"features": "", "split": "", "keep_features": True, **options}
    flags = types.SimpleNamespace(
      config=config, out=str(tmp_path / out), **args
    )
    monkeypatch.setattr(
      reference_statistics, "flags", types.SimpleNamespace(FLAGS=flags)
    )
    reference_statistics.main([])
    return str(tmp_path / out)

  return run


@pytest.mark.parametrize("kept", [True, False])
def test_a_file_is_written(run, network, capsys, kept):
  path = run("made.npz", split="test[:30]", keep_features=kept)
  made = statistics.load(path, network)
  assert (made.count, made.split) == (30, "test[:30]")
  assert made.data == "digits, 8 pixels, 1 channels"
  assert (made.features is not None) == kept
  if kept:
    np.testing.assert_allclose(made.mean, made.features.mean(0), rtol=1e-5)
  assert "30 images of digits, 8 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"out": "made"}, "must be a file that ends in .npz"),
    ({"out": "nowhere/made.npz"}, "in a folder that there is"),
    ({"out": "made.npz", "latents": "folder"}, "'folder' are no images"),
    ({"out": "made.npz", "split": "test[:1]"}, "has 1 images .* needs two"),
    ({"out": "made.npz", "split": "nope"}, "nope"),
  ],
)
def test_what_does_not_fit_is_refused(run, network, tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    run(**options)
  assert not list(tmp_path.glob("made*"))
