"""Runs with other options, whole, in this process; and what is refused."""

import jax
import numpy as np
import pytest

import train
from eval import evaluate
from tests.train_runs import (
  assert_same_state,
  read_rows,
)


# As many steps as a loss takes to go down.
@pytest.mark.slow
def test_the_loss_goes_down(config, tmp_path):
  config.train_for = "120 steps"
  config.evaluate_every = config.checkpoint.every = "120 steps"
  train.train_and_evaluate(config, str(tmp_path))
  losses = [r["train/loss"] for r in read_rows(tmp_path) if "train/loss" in r]
  assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


# A run of its own.
@pytest.mark.slow
@pytest.mark.parametrize("warmup", ["0 steps", "5 percent"])
def test_a_run_of_no_steps_is_evaluated_and_saved(config, tmp_path, warmup):
  config.train_for, config.optimizer.warmup = "0 epochs", warmup
  for _ in range(2):
    state = train.train_and_evaluate(config, str(tmp_path))
    assert int(state.step) == 0
    (row,) = read_rows(tmp_path)
    assert (row["step"], row["eval/examples"]) == (0, 360)
  assert evaluate(config, str(tmp_path))["loss"] == row["eval/loss"]


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("batch_size", 30, r"batch_size=30 .* multiple of 4"),
    ("eval_batch_size", 30, r"eval_batch_size=30"),
    ("accumulation_steps", 5, r"accumulation_steps=5"),
    ("mesh.model", 3, r"mesh=.*multiply to 4"),
    ("task", "regression", r"task='regression'.*classification"),
    ("loss.name", "hinge", r"loss.name='hinge'"),
    ("optimizer.name", "adagrad", r"optimizer.name='adagrad'"),
    ("optimizer.schedule", "never", r"optimizer.schedule='never'"),
    ("optimizer.warmup", "soon", r"optimizer.warmup='soon'"),
    ("train_for", "40", r"train_for='40'"),
    ("model.name", "maxvit_teeny_224", r"maxvit_teeny_224"),
    ("model.window_size", 3, r"window"),
    ("data.name", "digit", r"digits"),
    ("data.train_split", "training", r"training"),
    ("data.eval_transform", "resize(8)", r"resize"),
    ("data.image_size", 42, r"42 x 42"),
    ("dtype", "float31", r"float31"),
  ],
)
def test_what_does_not_fit_is_an_error_before_any_work(
  config, tmp_path, field, value, message
):
  config.update_from_flattened_dict({field: value})
  workdir = tmp_path / "run"
  with pytest.raises((ValueError, TypeError), match=message):
    train.train_and_evaluate(config, str(workdir))
  assert not workdir.exists()


# Several runs.
@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize(
  ("job", "fields"),
  [
    (
      "digits",
      {"dtype": "bfloat16", "model.remat": True, "optimizer.name": "lamb"},
    ),
    ("digits", {"mesh.data": 1, "mesh.fsdp": 4, "data.num_workers": 1}),
    (
      "digits",
      {
        "mixing.mixup_alpha": 0.8,
        "mixing.cutmix_alpha": 1.0,
        "loss.name": "sigmoid",
        "accumulation_steps": 2,
        "optimizer.name": "rmsprop",
        "optimizer.eps": 1e-3,
      },
    ),
    (
      "language",
      {
        "mesh.data": 2,
        "mesh.model": 2,
        "dtype": "bfloat16",
        "accumulation_steps": 2,
        "model.scan_layers": True,
        "model.remat": True,
        "model.mixers": ("sliding", "linear"),
        "model.mixer_options": {"sliding": {"normalizer": "affine"}},
        "model.window": 5,
        "model.dropout_rate": 0.1,
        "data.packing": "stream",
        "data.random_offsets": True,
        "ema.decay": 0.9,
      },
    ),
  ],
  indirect=["job"],
  scope="module",
)
def test_options_run_and_resume(config, tmp_path, fields):
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  config.train_for = "4 steps"
  config.evaluate_every = config.checkpoint.every = "2 steps"
  state = train.train_and_evaluate(config, str(tmp_path))
  assert int(state.step) == 4
  dtypes = {x.dtype for x in jax.tree.leaves(state.params)}
  assert dtypes == {np.dtype("float32")}
  # From the checkpoint of step 2 to the same bits.
  (tmp_path / "checkpoints" / "4").rename(tmp_path / "checkpoints" / "4.away")
  assert_same_state(state, train.train_and_evaluate(config, str(tmp_path)))
