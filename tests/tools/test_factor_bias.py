"""The tool that turns tables into factors, on a run of a few steps."""

import re

import numpy as np
import pytest

import eval as evaluation
import experiment
from configs import digits
from models import bias_factors
from tools import factor_bias
from tools.study import train
from train import train_and_evaluate
from training import checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A tiny MaxViT with windows of 4 x 4 tokens, after two steps."""
  config = digits.get_config("tiny")
  config.model.update(window_size=4, widths=(16,), depths=(1,))
  config.model.layout = ("block_attention", "grid_attention")
  config.data.num_threads = 0
  config.train_for = config.evaluate_every = config.checkpoint.every = "2 steps"
  folder = str(tmp_path_factory.mktemp("runs") / "tables")
  train(config, folder, show=False)
  return folder


# Trains, measures both models and evaluates what was written.
@pytest.mark.slow
def test_a_run_of_factors_is_measured_written_and_goes_on(run, tmp_path):
  config = experiment.load_trained(run)
  out = str(tmp_path / "factors")
  layers, result = factor_bias.factor(
    config, run, energy=0.8, limit=16, out=out
  )
  names = [f"stage_0/block_0/{n}_attention" for n in ("block", "grid")]
  assert [layer.name for layer in layers] == names
  # Of a table that is no more than its noise nearly all is needed.
  assert all(5 < layer.rank < 16 for layer in layers)
  assert 0 < result["cosine"] <= 1 + 1e-6
  assert result["agreement"] > 0.9
  told = factor_bias.describe(layers, result)
  assert len(told.splitlines()) == 5
  assert re.search(rf"{names[0]} +16 +{layers[0].rank} ", told)

  # What was written is measured as what was converted, and as eval.py does.
  written = experiment.load_trained(out)
  assert dict(written.model.bias_ranks) == {
    layer.name: layer.rank for layer in layers
  }
  again = evaluation.evaluate(written, out)
  assert again["accuracy"] == result["factors_accuracy"]
  assert again["loss"] == pytest.approx(result["factors_loss"], rel=1e-6)
  before = evaluation.evaluate(config, run)
  assert before["accuracy"] == result["accuracy"]
  with pytest.raises(ValueError, match=r"out=.* holds a run"):
    factor_bias.factor(config, run, out=out)

  # It trains on, and its factors move.
  state = train_and_evaluate(written, out, show=False)
  assert int(state.step) == 2
  layer = state.params["stage_0"]["block_0"]["grid_attention"]["attention"]
  store = checkpoints.Checkpoints(
    out, written.checkpoint, {"accuracy": "max"}, read_only=True
  )
  assert store.steps() == [0, 2]
  for name in bias_factors.FACTORS:
    assert np.isfinite(layer[name]).all()


def test_tables_that_stay_are_told():
  layers = [
    bias_factors.Layer("a", 16, (3, 5), 5, 0.01),
    bias_factors.Layer("bb", 16, (3, 17), 0, 0.0),
  ]
  names = ("accuracy", "loss", "factors_accuracy", "factors_loss")
  result = dict.fromkeys((*names, "cosine", "agreement"), 0.5)
  lines = factor_bias.describe(layers, result).splitlines()
  assert lines[1].split() == ["a", "16", "5", "1.00e-02", "2.02e-02", "3", "5"]
  assert lines[2].split() == ["bb", "16", "table", "3", "17"]
  assert "accuracy 50.00%" in lines[3]
