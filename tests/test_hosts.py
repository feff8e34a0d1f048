"""Two real processes, as two hosts of a pod."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import train
from configs import digits
from tests import compiler_flags
from training import summary

ROOT = Path(__file__).parent.parent
RATES = {"train/images_per_second", "train/goodput"}
pytestmark = pytest.mark.kill


def run_pair(folder, stage):
  """Runs `host_program.py` twice; returns what process 0 said."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": compiler_flags.QUICK
    + " --xla_force_host_platform_device_count=2",
    "PYTHONPATH": str(ROOT),
  }
  logs = [folder / f"{stage}_{index}.log" for index in range(2)]
  processes = []
  for index, log in enumerate(logs):
    command = [sys.executable, str(ROOT / "tests" / "host_program.py")]
    command += [str(port), str(index), str(folder), f"{folder}/data", stage]
    with log.open("w") as file:
      processes.append(
        subprocess.Popen(command, env=environment, stdout=file, stderr=file)
      )
  try:
    codes = [process.wait(timeout=900) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert codes == [0, 0], stage + "\n".join(
    log.read_text()[-3000:] for log in logs
  )
  return logs[0].read_text()


def read_rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def evaluated(workdir):
  return [row["step"] for row in read_rows(workdir) if "eval/loss" in row]


def test_rows_restoring_and_stopping_of_two_processes(tmp_path):
  run_pair(tmp_path, "parts")
  assert len(list(tmp_path.glob("parts_passed_*"))) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run that was stopped three times, and the runs beside it."""
  folder = tmp_path_factory.mktemp("hosts")
  stopped = folder / "stopped"
  # In training.
  output = run_pair(folder, "train:1")
  step = int(output.partition("stopped at step ")[2].partition(",")[0])
  assert 0 < step < 4
  # In an evaluation of 18 batches, and in the last one, the 19th to 36th batch:
  # the one that was left to do comes before it.
  assert "stopped at step 4, saved" in run_pair(folder, "eval:1")
  assert evaluated(stopped) == []
  assert "stopped at step 8, saved" in run_pair(folder, "eval:19")
  assert evaluated(stopped) == [4]
  run_pair(folder, "rest")
  return folder


def test_a_run_stopped_in_training_and_evaluations_ends_with_the_same_bits(
  folder,
):
  assert len(list(folder.glob("rest_passed_*"))) == 2
  rows = [
    [
      {k: v for k, v in row.items() if k not in RATES}
      for row in read_rows(folder / name)
    ]
    for name in ("stopped", "whole")
  ]
  assert rows[0] == rows[1]


def test_process_0_draws_what_needs_no_other(folder):
  assert {path.name for path in (folder / "across").glob("*.png")} == {
    "curves.png"
  }


def test_what_one_host_cannot_read_no_host_takes(folder):
  assert (folder / "whole" / "checkpoints" / "8.damaged").exists()
  for index in range(2):
    said = (folder / f"rest_{index}.log").read_text()
    assert "In process 1: the disk of one host" in said
  assert "going on from step 6 of 8" in (folder / "rest_0.log").read_text()


@pytest.fixture(scope="module")
def one_host(folder, tmp_path_factory):
  """What one process with as many devices writes of the same run."""
  workdir = tmp_path_factory.mktemp("one")
  config = digits.get_config("tiny")
  config.data.data_dir = f"{folder}/data"
  config.train_for = "8 steps"
  config.evaluate_every = "4 steps"
  config.eval_batch_size = 20
  with mock.patch.object(summary, "finish"):
    train.train_and_evaluate(config, str(workdir))
  return read_rows(workdir)


@pytest.mark.parametrize("name", ["whole", "across"])
def test_two_hosts_train_as_one(folder, one_host, name):
  one, two = one_host, read_rows(folder / name)
  assert [row["step"] for row in two] == [row["step"] for row in one]
  for a, b in zip(one, two, strict=True):
    for key in a.keys() - RATES:
      # Sums in another order; a near tie of two classes may fall either way.
      slack = 0.01 if "accuracy" in key else 0
      assert b[key] == pytest.approx(a[key], rel=1e-4, abs=slack), key
