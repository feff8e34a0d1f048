"""The training loop, whole, in this process."""

import json
import multiprocessing
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

import experiment
import storage
import train
from configs import digits
from eval import evaluate
from models import pretrained
from tasks import predictions
from training import checkpoints, evaluation, plots, records, reporting


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data_dir):
  config = digits.get_config("tiny")
  config.data.data_dir = data_dir
  return config


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
  """One run that nothing interrupted."""
  config = digits.get_config("tiny")
  config.data.data_dir = data_dir
  workdir = str(tmp_path_factory.mktemp("finished"))
  return train.train_and_evaluate(config, workdir), workdir


@pytest.fixture
def copied(finished, tmp_path):
  """The folder of a copy of that run, to be changed."""
  return shutil.copytree(finished[1], tmp_path / "copied")


def read_rows(workdir):
  with open(f"{workdir}/metrics.jsonl") as file:
    return [json.loads(line) for line in file]


def assert_same_state(a, b):
  """Equal to the last bit, random key and statistics included."""
  a, b = (
    jax.tree.map(
      lambda x: np.asarray(
        jax.random.key_data(x)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        else x
      ),
      state,
    )
    for state in (a, b)
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_leaves_what_it_promises(finished):
  state, workdir = finished
  assert int(state.step) == 12
  names = set(os.listdir(workdir))
  assert names >= {
    "checkpoints",
    "config.json",
    "curves.png",
    "metrics.jsonl",
    "predictions.png",
    "run.json",
    "tensorboard",
  }
  rows = read_rows(workdir)
  train_steps = [r["step"] for r in rows if "train/loss" in r]
  assert train_steps == list(range(1, 13))
  assert [r["step"] for r in rows if "eval/loss" in r] == [6, 12]
  assert rows[-1]["step"] == 12
  assert rows[-1]["eval/examples"] == 360
  assert 0 <= rows[-1]["eval/accuracy"] <= 1
  for name in ("curves.png", "predictions.png"):
    with open(f"{workdir}/{name}", "rb") as file:
      assert file.read(4) == b"\x89PNG"


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
def test_eval_reproduces_the_number(config, finished):
  _, workdir = finished
  rows = read_rows(workdir)
  result = evaluate(experiment.load_config(workdir), workdir)
  assert result == {
    k.removeprefix("eval/"): v
    for k, v in rows[-1].items()
    if k.startswith("eval/")
  }
  best = evaluate(config, workdir, step="best")
  assert best["accuracy"] == max(r.get("eval/accuracy", 0) for r in rows)
  raw = evaluate(config, workdir, use_ema=False)
  assert raw["loss"] != result["loss"]


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
  config, finished, monkeypatch, caplog, capsys
):
  state, workdir = finished
  before = read_rows(workdir)
  # Seconds of earlier starts are in the checkpoint, those of this one are not.
  monkeypatch.setattr(train.time, "perf_counter", lambda: 100.0)

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
  assert took.endswith("of all starts together")
  assert not took.startswith("took 0 s")
  assert_same_state(state, again)
  assert read_rows(workdir) == before
  for what in (
    "closing the files of the run failed: MetricsError",
    "drawing the curves failed: OSError: .*No space left",
    "showing what the model does failed: OSError: .*No space left",
  ):
    assert re.search(what, caplog.text), what


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


def test_another_shape_does_not_fit(config, finished):
  _, workdir = finished
  config.model.widths = (48,)
  with pytest.raises(
    checkpoints.CheckpointError, match=r"step 12 .*does not fit.*ema/.*\(192,\)"
  ):
    train.train_and_evaluate(config, workdir, override_config=True)


# A run of its own.
@pytest.mark.slow
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


def strip_rates(rows):
  return [
    {k: v for k, v in row.items() if k != "train/images_per_second"}
    for row in rows
  ]


# Several runs.
@pytest.mark.slow
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


# A run in a process that imports everything anew.
@pytest.mark.slow
def test_a_profile_is_written(config, tmp_path):
  # In a process of its own: where another test has compiled for a chip that is
  # not here, the profiler asks that chip as well and crashes.
  process = multiprocessing.get_context("spawn").Process(
    target=train.train_and_evaluate,
    args=(config, str(tmp_path)),
    kwargs={"profile": True},
  )
  process.start()
  process.join()
  assert process.exitcode == 0
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


# Several runs.
@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize(
  "fields",
  [
    {"dtype": "bfloat16", "model.remat": True, "optimizer.name": "lamb"},
    {"mesh.data": 1, "mesh.fsdp": 4, "data.num_workers": 1},
    {
      "mixing.mixup_alpha": 0.8,
      "mixing.cutmix_alpha": 1.0,
      "loss.name": "sigmoid",
      "accumulation_steps": 2,
      "optimizer.name": "rmsprop",
      "optimizer.eps": 1e-3,
    },
  ],
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
