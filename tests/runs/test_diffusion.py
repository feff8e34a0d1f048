"""From moving digits to a model of them, to pictures; small images first."""

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


def test_a_small_image_is_made_first(tmp_path):
  config = diffusion.get_config("digits")
  config.model.update(dict(width=24, depth=1, heads=2))
  totals = []

  def count(items, total):
    totals.append(total)
    return items

  def draw(size, method_options):
    sample.sample(
      config,
      "random",
      classes="3",
      num_samples=1,
      steps=2,
      guidance="1",
      size=size,
      method="scale_dit",
      method_options=method_options,
      out=str(tmp_path / "large.png"),
      progress=count,
    )

  draw("16x16", "window=4,scale=2")
  # Two steps of the small image and two of the large.
  assert totals == [4]
  with Image.open(tmp_path / "large.png") as picture:
    assert picture.size == (66 + 2, 66 + 2)
  with pytest.raises(ValueError, match=r"size=\(18, 16\) must be multiples"):
    draw("18x16", "window=4,scale=4")
  assert totals == [4]
