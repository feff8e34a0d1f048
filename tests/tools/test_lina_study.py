"""LINA's study: what is done once, and the tables that are made of it."""

import json
import types

import jax.numpy as jnp
import pytest
from etils import epath

from tools import lina_study, lina_tables, study

_NAMES = ("main", "copies", "ablations", "cost")


@pytest.fixture
def done(monkeypatch):
  """What was trained and evaluated, in place of doing it."""
  calls = {"train": [], "evaluate": []}

  def train(config, workdir, *, show):
    assert show
    calls["train"].append((workdir, config))
    step, _ = config.train_for.split()
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}
    return types.SimpleNamespace(step=int(step), params=params)

  def evaluate(config, workdir, *, use_ema, guidance, num_samples):
    calls["evaluate"].append((workdir, use_ema, guidance, num_samples))
    return {
      "frechet_distance": config.seed + float(guidance),
      "class_accuracy": 0.9 if use_ema else 0.8,
      "loss": 0.7,
      # Of what was sampled, whatever the run's.
      "seed": 0,
      "guidance": float(guidance),
    }

  monkeypatch.setattr(study, "train_and_evaluate", train)
  monkeypatch.setattr(lina_study, "evaluate", evaluate)
  monkeypatch.setattr(
    lina_study,
    "_measure_real",
    lambda data, samples: {"samples": samples, "frechet_distance": 0.5},
  )
  monkeypatch.setattr(
    lina_study,
    "_compare",
    lambda config, workdir, samples: {
      "nearest_median": 20.0 + config.seed,
      "held_out_nearest_median": 21.0,
      "nearer_than_held_out": 0.02,
    },
  )
  return calls


def _run(tmp_path, *more):
  lina_study.main(
    [f"--out={tmp_path}/study", "--variant=test", "--samples=20", *more]
  )


def test_what_is_done_is_not_done_again(tmp_path, done):
  _run(tmp_path, "--seeds", "0", "1")
  rows = len(lina_tables.ROWS)
  assert len(done["train"]) == 2 * rows
  # Averaged and raw, with guidance and without.
  assert len(done["evaluate"]) == 8 * rows
  assert len(set(done["evaluate"])) == 8 * rows
  assert len({workdir for workdir, _ in done["train"]}) == 2 * rows
  _run(tmp_path, "--seeds", "0", "1", "2")
  assert len(done["train"]) == 3 * rows
  assert len(done["evaluate"]) == 12 * rows
  path = tmp_path / "study" / "results.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  # A run, four ways to make samples, and whether those of the main rows copy.
  assert len(lines) == 1 + 3 * (5 * rows + 2)
  assert all(line["cpu_seconds"] >= 0 for line in lines)
  keys = [{**line, "cpu_seconds": 0, "seconds": 0} for line in lines]
  assert len({json.dumps(key) for key in keys}) == len(lines)
  assert {line["seed"] for line in lines[1:]} == {0, 1, 2}
  # One that is missing is done, alone.
  path.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
  _run(tmp_path)
  assert len(done["evaluate"]) == 12 * rows + 1
  assert done["evaluate"][-1] == done["evaluate"][-2]


def test_another_config_is_another_run(tmp_path, done, monkeypatch):
  _run(tmp_path, "--seeds", "0")
  before = len(done["train"])
  get_config = lina_study.lina.get_config

  def longer(variant):
    config = get_config(variant)
    config.train_for = "30 steps"
    return config

  monkeypatch.setattr(lina_study.lina, "get_config", longer)
  report = tmp_path / "lina.md"
  marks = [f"<!-- begin: {n} -->\n<!-- end: {n} -->\n" for n in _NAMES]
  report.write_text("".join(marks))
  _run(tmp_path, "--seeds", "0", f"--report={report}")
  assert len(done["train"]) == 2 * before
  # Of the first config nothing is in the tables.
  noted = (tmp_path / "lina.jsonl").read_text().splitlines()
  assert len(noted) == 1 + 5 * len(lina_tables.ROWS) + 2
  steps = {json.loads(line).get("train_steps") for line in noted}
  assert steps == {None, 30, 10}


def test_rows_differ_in_what_they_name(done, tmp_path):
  _run(tmp_path, "--seeds", "3")
  configs = {
    workdir.rsplit("/", 1)[1]: config for workdir, config in done["train"]
  }
  full = configs["test_main_lina_3"]
  assert full.seed == 3
  assert full.train_for == "12 steps"
  assert configs["test_ablations_lina_3"].train_for == "4 steps"
  assert configs["test_ablations_lina_3"].checkpoint.every == "1 steps"
  assert configs["test_ablations_no_gate_3"].model.gate == "none"
  assert not configs["test_ablations_no_convolution_3"].model.convolution
  softmax = configs["test_main_softmax_3"].model
  assert (softmax.attention, softmax.gate) == ("softmax", "none")
  assert not softmax.convolution
  subtraction = configs["test_ablations_subtraction_3"].model
  assert subtraction.normalizer == "subtraction"
  assert "gate" not in subtraction


def test_a_report(tmp_path, done):
  report = epath.Path(tmp_path / "lina.md")
  report.write_text(
    "".join(
      ["before\n"]
      + [
        f"<!-- begin: {n} -->\nold\n<!-- end: {n} -->\nafter {n}\n"
        for n in _NAMES
      ]
    )
  )
  _run(tmp_path, "--seeds", "0", "2", f"--report={report}")
  text = report.read_text()
  assert "old" not in text
  assert text.startswith("before\n<!-- begin: main -->\n| model |")
  assert text.endswith("<!-- end: cost -->\nafter cost\n")
  rows = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in text.splitlines()
    if line.startswith("|")
  ]
  (real,) = (row for row in rows if row[0] == "real training images")
  assert real[7:10] == ["20", "", "0.50"]
  main = [row for row in rows if row[0] == "LINA" and row[1] == "12"]
  # 1 + {0, 2} and 2.4 + {0, 2}: the deviation is that of a sample of two.
  assert main[0][2:10] == [
    *("0, 2", "averaged", "1", "16", "25", "20"),
    *("90.0 ± 0.0", "2.00 ± 1.41"),
  ]
  assert main[3][3:5] == ["raw", "2.4"]
  assert main[3][8:10] == ["80.0 ± 0.0", "3.40 ± 1.41"]
  (copies,) = (row for row in rows if len(row) == 5 and row[0] == "LINA")
  assert copies == ["LINA", "0, 2", "21.0 ± 1.4", "21.0", "2.0 ± 0.0"]
  ablated = [row for row in rows if row[0] == "no gate" and len(row) > 5]
  assert [row[-1] for row in ablated] == ["9.11", "", "", ""]
  (cost,) = (row for row in rows if row[:2] == ["ablations", "subtraction"])
  assert cost[2:4] == ["10", "4"]
  assert [row[0] for row in rows if row[1] == "all"] == ["main", "ablations"]


def test_a_report_without_marks(tmp_path, done):
  report = tmp_path / "lina.md"
  report.write_text("<!-- begin: main -->\n")
  with pytest.raises(SystemExit, match="lacks <!-- begin: main"):
    _run(tmp_path, "--seeds", "0", f"--report={report}")


def test_a_run_that_was_stopped(tmp_path, done, monkeypatch):
  stopped = types.SimpleNamespace(step=5, params={})
  monkeypatch.setattr(
    study, "train_and_evaluate", lambda config, workdir, show: stopped
  )
  with pytest.raises(SystemExit, match="stopped at step 5 of 12 steps"):
    _run(tmp_path)
  assert done["evaluate"] == []
