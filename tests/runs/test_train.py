"""The training loop, whole, in this process."""

import os
import pathlib
import re
import shutil
import signal

import jax
import numpy as np
import pytest

import experiment
import storage
import train
from eval import evaluate
from models import pretrained
from tasks import predictions
from tests.train_runs import (
  LANGUAGE_TEXT,
  assert_same_state,
  make_config,
  of_every_task,
  read_rows,
  strip_rates,
)
from training import (
  checkpoints,
  evaluation,
  phases,
  plots,
  records,
  reporting,
)


@pytest.fixture(scope="module")
def finished(job, data_dir, tmp_path_factory):
  """One run that nothing interrupted."""
  workdir = str(tmp_path_factory.mktemp("finished"))
  config = make_config(job, data_dir)
  return train.train_and_evaluate(config, workdir), workdir


@pytest.fixture
def copied(finished, tmp_path):
  """The folder of a copy of that run, to be changed."""
  return shutil.copytree(finished[1], tmp_path / "copied")


@of_every_task
def test_a_run_leaves_what_it_promises(job, finished):
  state, workdir = finished
  assert int(state.step) == 12
  assert set(os.listdir(workdir)) == {
    "checkpoints",
    "config.json",
    "curves.png",
    "metrics.jsonl",
    "run.json",
    "tensorboard",
    *{
      "digits": ("predictions.png",),
      "language": ("samples.txt", "tokenizer.json"),
      "lina": ("samples.png",),
    }[job],
  }
  rows = read_rows(workdir)
  train_steps = [r["step"] for r in rows if "train/loss" in r]
  assert train_steps == list(range(1, 13))
  assert [r["step"] for r in rows if "eval/loss" in r] == [6, 12]
  assert all(0 <= r["train/goodput"] < 1 for r in rows if "train/loss" in r)
  assert rows[-1]["step"] == 12
  if job != "lina":
    assert 0 <= rows[-1]["eval/accuracy"] <= 1
  for path in pathlib.Path(workdir).glob("*.png"):
    assert path.read_bytes()[:4] == b"\x89PNG"
  if job != "language":
    assert rows[-1]["eval/examples"] == 360
  else:
    # A tenth of the characters is evaluated, and the end of the text.
    size = len(LANGUAGE_TEXT[-len(LANGUAGE_TEXT) // 10 :].encode())
    assert rows[-1]["eval/bytes"] == size
    assert rows[-1]["eval/tokens"] == size + 1


# A run of its own.
@pytest.mark.slow
@of_every_task
def test_eval_reproduces_the_number(config, finished):
  _, workdir = finished
  rows = read_rows(workdir)
  result = evaluate(experiment.load_trained(workdir), workdir)
  assert result == {
    k.removeprefix("eval/"): v
    for k, v in rows[-1].items()
    if k.startswith("eval/")
  }
  best = evaluate(config, workdir, step="best")
  name = config.checkpoint.best_metric
  values = [row[f"eval/{name}"] for row in rows if f"eval/{name}" in row]
  assert best[name] == (max if name == "accuracy" else min)(values)
  raw = evaluate(config, workdir, use_ema=False)
  assert (raw["loss"] != result["loss"]) == (config.ema.decay > 0)


# A run of its own.
@pytest.mark.slow
def test_eval_takes_a_file_of_weights(config, finished, tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  state, workdir = finished
  model = experiment.create(config).task.model
  path = str(tmp_path / "weights.safetensors")
  safetensors.save_file(pretrained.to_tensors(state.variables(), model), path)
  result = evaluate(config, path)
  assert result == evaluate(config, workdir)
  random = evaluate(config, "random")
  assert random["loss"] != result["loss"]


def test_eval_errors_say_what_is_there(config, finished, tmp_path):
  _, workdir = finished
  with pytest.raises(ValueError, match="holds no run"):
    evaluate(config, str(tmp_path))
  with pytest.raises(ValueError, match=r"step='5'.*\[9, 12\]|step='5'"):
    evaluate(config, workdir, step="5")
  with pytest.raises(ValueError, match="none of last, best or a number"):
    evaluate(config, workdir, step="newest")


# A run of its own.
@pytest.mark.slow
def test_the_same_command_after_the_end_changes_nothing(
  config, finished, repeated, monkeypatch, caplog, capsys
):
  state, workdir = finished
  repeated.finish_as_users_do(monkeypatch)
  before = read_rows(workdir)
  # Seconds of earlier starts are in the checkpoint, those of this one are not.
  monkeypatch.setattr(phases.time, "perf_counter", lambda: 100.0)

  def fail(*args):
    raise OSError(28, "No space left on device")

  # Nor do pictures and files that cannot be written make it a failure.
  monkeypatch.setattr(plots, "plot_curves", fail)
  monkeypatch.setattr(predictions, "plot_predictions", fail)
  close = storage.GrowingFile.close
  monkeypatch.setattr(
    storage.GrowingFile, "close", lambda file: (close(file), fail())
  )
  again = train.train_and_evaluate(config, workdir)
  (took,) = [
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith("took ")
  ]
  assert re.search(r", of all starts together: .*\d+% steps", took)
  assert not took.startswith("took 0 s")
  assert_same_state(state, again)
  assert read_rows(workdir) == before
  for what in (
    "closing the files of the run failed: MetricsError",
    "drawing the curves failed: OSError: .*No space left",
    "showing what the model does failed: OSError: .*No space left",
  ):
    assert re.search(what, caplog.text), what


def test_another_shape_does_not_fit(config, finished):
  _, workdir = finished
  config.model.widths = (48,)
  with pytest.raises(
    checkpoints.CheckpointError, match=r"step 12 .*does not fit.*ema/.*\(192,\)"
  ):
    train.train_and_evaluate(config, workdir, override_config=True)


# A run of its own.
@pytest.mark.slow
@of_every_task
def test_the_seed_decides(config, finished, tmp_path):
  state, _ = finished
  again = train.train_and_evaluate(config, str(tmp_path))
  assert_same_state(state, again)
  fresh = []
  for seed in (0, 1):
    config.seed = seed
    built = experiment.create(config)
    with jax.set_mesh(built.mesh):
      leaves = jax.tree.leaves(built.init().params)
    fresh.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
  assert not np.array_equal(*fresh)


# Several runs.
@pytest.mark.slow
@pytest.mark.smoke
@of_every_task
def test_a_stopped_run_goes_on_to_the_same_bits(
  config, finished, tmp_path, monkeypatch
):
  state, workdir = finished
  taken = []
  original = evaluation.put_batch

  def put_and_signal(batch, mesh):
    taken.append(batch)
    if len(taken) == 5:
      os.kill(os.getpid(), signal.SIGTERM)
    return original(batch, mesh)

  monkeypatch.setattr(evaluation, "put_batch", put_and_signal)
  stopped = train.train_and_evaluate(config, str(tmp_path))
  assert int(stopped.step) == 5
  assert_same_state(state, train.train_and_evaluate(config, str(tmp_path)))
  assert strip_rates(read_rows(tmp_path)) == strip_rates(read_rows(workdir))


# Several runs.
@pytest.mark.slow
@of_every_task
def test_a_run_stopped_in_an_evaluation_makes_up_for_it(
  config, finished, tmp_path, monkeypatch
):
  state, workdir = finished
  original = evaluation.sum_batches

  def sum_batches(*args, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return original(*args, **options)

  with monkeypatch.context() as patch:
    patch.setattr(evaluation, "sum_batches", sum_batches)
    stopped = train.train_and_evaluate(config, str(tmp_path))
    assert int(stopped.step) == 6
    # Stopped again, in the evaluation that was left to do.
    stopped = train.train_and_evaluate(config, str(tmp_path))
    assert int(stopped.step) == 6
    assert not any("eval/loss" in row for row in read_rows(tmp_path))
  assert_same_state(state, train.train_and_evaluate(config, str(tmp_path)))
  assert strip_rates(read_rows(tmp_path)) == strip_rates(read_rows(workdir))


# A run of its own.
@pytest.mark.slow
@of_every_task
def test_a_damaged_checkpoint_is_passed_over(config, finished, copied, capsys):
  state, _ = finished
  newest = copied / "checkpoints" / "12" / "state"
  largest = max(newest.rglob("*"), key=lambda p: p.stat().st_size)
  os.truncate(largest, 100)
  again = train.train_and_evaluate(config, str(copied))
  assert "going on from step 9" in capsys.readouterr().out
  assert_same_state(state, again)


def test_all_checkpoints_damaged_is_an_error(config, copied):
  for step in (copied / "checkpoints").iterdir():
    (step / "record" / "metadata").write_text("{")
  before = sorted(copied.rglob("*"))
  with pytest.raises(checkpoints.CheckpointError, match="nothing was changed"):
    train.train_and_evaluate(config, str(copied))
  assert sorted(copied.rglob("*")) == before


# A run of its own.
@pytest.mark.slow
def test_divergence_stops_the_run_and_names_the_step(config, tmp_path):
  config.optimizer.name = "sgd"
  config.optimizer.schedule = "stepwise"
  config.optimizer.warmup = "0 steps"
  config.optimizer.clip_norm = 0.0
  config.optimizer.boundaries = ("7 steps",)
  config.optimizer.decay_factor = 1e30
  config.optimizer.final_learning_rate = 0.0
  with pytest.raises(reporting.NonFiniteError, match=r"at step (8|9)\b") as e:
    train.train_and_evaluate(config, str(tmp_path))
  assert "[3, 6]" in str(e.value)
  steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
  assert steps == [3, 6]


def test_another_config_is_refused(config, finished):
  _, workdir = finished
  config.optimizer.learning_rate = 0.5
  with pytest.raises(
    records.ConfigMismatchError, match=r"optimizer.learning_rate: 0.003 -> 0.5"
  ):
    train.train_and_evaluate(config, workdir)


# A run of its own.
@pytest.mark.slow
def test_another_config_goes_on_when_asked(config, copied):
  config.train_for = "14 steps"
  state = train.train_and_evaluate(config, str(copied), override_config=True)
  assert int(state.step) == 14
