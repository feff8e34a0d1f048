"""Real processes, two and four of them, as the hosts of a pod."""

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

import train
from configs import digits
from tests import compiler_flags
from training import summary

ROOT = Path(__file__).parent.parent
DEVICES = 4
# Until all have ended when one was killed; JAX itself takes up to 100 s.
END_SECONDS = 120
RATES = {"train/images_per_second", "train/goodput"}
pytestmark = pytest.mark.kill


class Pod:
  """Processes of `host_program.py`, each with a log of its own."""

  def __init__(self, folder, stage, count=2):
    # Held as long as the pod is there, or another program may be given it
    # before process 0 takes it, which shares it as gRPC does.
    self._held = socket.socket()
    self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    self._held.bind(("localhost", 0))
    port = self._held.getsockname()[1]
    devices = f" --xla_force_host_platform_device_count={DEVICES // count}"
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": compiler_flags.QUICK + devices,
      "PYTHONPATH": str(ROOT),
    }
    self.stage = stage
    self.logs = [folder / f"{stage}_{index}.log" for index in range(count)]
    self.processes = []
    for index, log in enumerate(self.logs):
      command = [sys.executable, str(ROOT / "tests" / "host_program.py")]
      command += [str(port), str(index), str(count), str(folder)]
      command += [f"{folder}/data", stage]
      with log.open("w") as file:
        self.processes.append(
          subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        )

  def said(self, index=0):
    return self.logs[index].read_text()

  def codes(self, timeout):
    """Waits for the end of all; returns their exit codes."""
    limit = time.monotonic() + timeout
    try:
      return [
        process.wait(max(limit - time.monotonic(), 0))
        for process in self.processes
      ]
    finally:
      for process in self.processes:
        process.kill()
      self._held.close()

  def finish(self):
    """Runs to the end; returns what process 0 said."""
    codes = self.codes(900)
    assert set(codes) == {0}, self.stage + "\n".join(
      self.said(index)[-3000:] for index in range(len(codes))
    )
    return self.said()

  def kill_one(self, index, workdir, rng):
    """Kills a process once it trains; the others end by themselves."""
    rows = workdir / "metrics.jsonl"
    while not (rows.exists() and rows.read_text()):
      assert all(process.poll() is None for process in self.processes)
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.5))
    assert self.processes[index].poll() is None, "the run was over too soon"
    self.processes[index].kill()
    codes = self.codes(END_SECONDS)
    assert 0 not in codes, codes


def read_rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def evaluated(workdir):
  return [row["step"] for row in read_rows(workdir) if "eval/loss" in row]


def test_rows_restoring_and_stopping_of_two_processes(tmp_path):
  Pod(tmp_path, "parts").finish()
  assert len(list(tmp_path.glob("parts_passed_*"))) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run that was stopped three times, and the runs beside it."""
  folder = tmp_path_factory.mktemp("hosts")
  pod = Pod(folder, "kill")
  pod.kill_one(0, folder / "killed", random.Random(0))
  stopped = folder / "stopped"
  # In training.
  output = Pod(folder, "train:1").finish()
  step = int(output.partition("stopped at step ")[2].partition(",")[0])
  assert 0 < step < 4
  # In an evaluation of 18 batches, and in the last one, the 19th to 36th batch:
  # the one that was left to do comes before it.
  assert "stopped at step 4, saved" in Pod(folder, "eval:1").finish()
  assert evaluated(stopped) == []
  assert "stopped at step 8, saved" in Pod(folder, "eval:19").finish()
  assert evaluated(stopped) == [4]
  Pod(folder, "rest").finish()
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


def test_killed_process_0_ends_the_other_and_the_run_has_the_same_bits(
  folder,
):
  # The bits are compared in the last stage.
  assert len(list(folder.glob("rest_passed_*"))) == 2
  # The death of process 0 is seen by JAX, which ends the others.
  assert "another task died" in (folder / "kill_1.log").read_text()
  steps = [row["step"] for row in read_rows(folder / "killed")]
  assert steps == [row["step"] for row in read_rows(folder / "whole")]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
  """A folder where four processes trained, of which one was killed."""
  folder = tmp_path_factory.mktemp("four")
  rng = random.Random(0)
  pod = Pod(folder, "four", count=4)
  killed = rng.randrange(1, 4)
  pod.kill_one(killed, folder / "four_killed", rng)
  assert re.search(f"no sign of .*process {killed}", pod.said(0))
  Pod(folder, "four_rest", count=4).finish()
  return folder


def test_four_processes_of_which_one_was_killed_end_with_the_same_bits(four):
  assert len(list(four.glob("four_rest_passed_*"))) == 4
  steps = [row["step"] for row in read_rows(four / "four_killed")]
  assert steps == [row["step"] for row in read_rows(four / "four_whole")]


@pytest.mark.parametrize(
  ("stage", "said"),
  [
    ("hang", "Nothing went on for 8 s (--wait_limit): process 1"),
    ("late", "Waited for the others up to 8 s: process 1"),
    ("error", "failed: ValueError: the disk of one host"),
  ],
)
def test_a_process_that_does_not_go_on_ends_all_and_is_named(
  tmp_path, stage, said
):
  pod = Pod(tmp_path, stage)
  assert 0 not in pod.codes(100)
  assert said in pod.said(0)


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


# Of four hosts, three have fewer examples of the last batch or none.
@pytest.mark.parametrize("name", ["whole", "across", "four_whole"])
def test_hosts_train_as_one(folder, four, one_host, name):
  where = four if name.startswith("four") else folder
  one, two = one_host, read_rows(where / name)
  assert [row["step"] for row in two] == [row["step"] for row in one]
  for a, b in zip(one, two, strict=True):
    for key in a.keys() - RATES:
      # Sums in another order; a near tie of two classes may fall either way.
      slack = 0.01 if "accuracy" in key else 0
      assert b[key] == pytest.approx(a[key], rel=1e-4, abs=slack), key
