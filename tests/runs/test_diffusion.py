"""From moving digits to a model of them, to pictures that move."""

import numpy as np
import pytest
from PIL import Image

import eval as eval_program
import sample
import train
from configs import diffusion
from tests.train_runs import read_rows
from training import summary

# Trains a model.
pytestmark = pytest.mark.slow


def test_a_run_and_what_goes_on_with_it(tmp_path, monkeypatch, repeated):
  repeated.finish_as_users_do(monkeypatch)
  assert summary.finish.__module__ == "training.summary"
  config = diffusion.get_config("test")
  config.train_for, config.evaluate_every = "4 steps", "4 steps"
  workdir = str(tmp_path / "run")
  train.train_and_evaluate(config, workdir)
  losses = [
    row["eval/loss"] for row in read_rows(workdir) if "eval/loss" in row
  ]
  assert losses
  assert np.isfinite(losses).all()
  with Image.open(f"{workdir}/samples.gif") as animation:
    assert animation.n_frames == config.data.video.frames
  one, two = (tmp_path / name for name in ("one.png", "two.png"))
  for out, seed in ((one, 0), (two, 1)):
    sample.sample(
      config, workdir, classes="3+7,0+0", steps=2, seed=seed, out=str(out)
    )
  pictures = [np.asarray(Image.open(path)) for path in (one, two)]
  assert pictures[0].shape == (2 * 66 + 2, 4 * 66 + 2)
  assert not np.array_equal(*pictures)
  found = eval_program.evaluate(config, workdir)
  assert found["examples"] == 20
  assert found["loss"] == pytest.approx(losses[-1], rel=1e-5)
