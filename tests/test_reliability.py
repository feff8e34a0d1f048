"""Training processes that are killed, and a disk that fills up."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import compiler_flags
from tests.train_runs import LANGUAGE_TEXT

ROOT = Path(__file__).parent.parent
STEPS = 120
CONFIGS = {
  "digits": "configs/digits.py:tiny",
  "language": "configs/language.py:test",
}
pytestmark = pytest.mark.kill


@pytest.fixture(scope="module", params=["digits"])
def job(request):
  """Which of CONFIGS; a test may say others."""
  return request.param


@pytest.fixture(scope="module")
def shared(job, tmp_path_factory):
  """A folder for the data set, and what to train with it."""
  folder = tmp_path_factory.mktemp("shared")
  options = [
    f"--config={CONFIGS[job]}",
    f"--config.data.data_dir={folder}/data",
  ]
  if job == "language":
    (folder / "text.txt").write_text(LANGUAGE_TEXT)
    options.append(f"--config.data.files={folder}/text.txt")
  return options


def start(options, workdir, *overrides, wrapper=()):
  """Starts the README's command on a small model; output goes to a file."""
  command = [
    *wrapper,
    sys.executable,
    "train.py",
    *options,
    f"--workdir={workdir}",
    f"--config.train_for={STEPS} steps",
    "--config.evaluate_every=40 steps",
    "--config.checkpoint.every=10 steps",
    "--config.batch_size=32",
    *overrides,
  ]
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": compiler_flags.QUICK,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  log = Path(f"{workdir}.log")
  with log.open("a") as file:
    return subprocess.Popen(
      command, cwd=ROOT, env=environment, stdout=file, stderr=file
    )


def finish(options, workdir, *overrides, **wrapped):
  """Runs to the end; returns the exit code and all output so far."""
  code = start(options, workdir, *overrides, **wrapped).wait(timeout=240)
  return code, Path(f"{workdir}.log").read_text()


@pytest.fixture(scope="module")
def reference_run(shared, tmp_path_factory):
  """The folder of a run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("reference") / "run"
  code, output = finish(shared, workdir, "--profile")
  assert code == 0, output
  return workdir


@pytest.fixture(scope="module")
def reference(reference_run):
  """The final arrays of a run that nothing interrupted."""
  return final_arrays(reference_run)


def final_arrays(workdir):
  path = workdir / "checkpoints" / str(STEPS) / "state"
  return ocp.StandardCheckpointer().restore(path)


def assert_equals_reference(workdir, reference):
  """Every parameter, statistic, average and moment, to the bit."""
  import jax

  arrays = final_arrays(workdir)
  assert jax.tree.structure(arrays) == jax.tree.structure(reference)
  for a, b in zip(
    jax.tree.leaves(arrays), jax.tree.leaves(reference), strict=True
  ):
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(a, b)


def read_rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def steps_written(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def wait_until(condition, process):
  while not condition() and process.poll() is None:
    time.sleep(0.0005)


def is_saving(workdir):
  return any(
    "tmp" in name
    for name in (
      os.listdir(workdir / "checkpoints")
      if (workdir / "checkpoints").exists()
      else ()
    )
  )


def kill(process):
  process.send_signal(signal.SIGKILL)
  process.wait()


# In a process that has compiled for a chip that is not here the profiler asks
# that chip as well, and crashes.
def test_a_profile_is_written(reference_run):
  assert list((reference_run / "profile").rglob("*.xplane.pb"))


# The loop is the same, so that another task is killed less often.
@pytest.mark.parametrize(
  ("job", "most"),
  [("digits", 10), ("language", 3)],
  indirect=["job"],
  scope="module",
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(
  shared, reference, tmp_path, job, most
):
  workdir = tmp_path / "run"
  rng = random.Random(0)
  kills = 0
  for _ in range(40):
    process = start(shared, workdir)
    if kills % 2:
      # In the middle of writing a checkpoint.
      goal = steps_written(workdir) + rng.randrange(1, 25)
      wait_until(
        lambda goal=goal: steps_written(workdir) > goal and is_saving(workdir),
        process,
      )
      time.sleep(rng.uniform(0, 0.01))
    else:
      # Anywhere: at start-up, in a step, in an evaluation.
      wait_until(lambda: steps_written(workdir) > 0, process)
      time.sleep(rng.uniform(0, 1.0))
    if process.poll() is not None:
      break
    kill(process)
    kills += 1
    if kills == most:
      code, output = finish(shared, workdir)
      assert code == 0, output
      break
  assert kills > most // 2, "the run was over before it could be killed"
  assert_equals_reference(workdir, reference)
  rows = read_rows(workdir)
  trained = [row["step"] for row in rows if "train/loss" in row]
  assert trained == list(range(1, STEPS + 1))
  assert rows[-1]["step"] == STEPS
  assert "eval/loss" in rows[-1]


def test_sigterm_saves_and_the_rerun_goes_on(shared, reference, tmp_path):
  workdir = tmp_path / "run"
  process = start(shared, workdir)
  wait_until(lambda: steps_written(workdir) > 20, process)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=240) == 0
  output = Path(f"{workdir}.log").read_text()
  stopped = int(output.partition("stopped at step ")[2].partition(",")[0])
  assert 20 < stopped < STEPS
  assert (workdir / "checkpoints" / str(stopped)).exists()
  code, output = finish(shared, workdir)
  assert code == 0, output
  assert f"going on from step {stopped} of {STEPS}" in output
  assert_equals_reference(workdir, reference)


def small_disk(mount, size):
  """A command prefix that runs the rest with a small disk at `mount`."""
  script = f'mount -t tmpfs -o size={size} none {mount} && "$@"; code=$?; '
  script += f"ls {mount}/run/checkpoints > {mount.parent}/left; exit $code"
  return (
    "unshare",
    "--user",
    "--map-root-user",
    "--mount",
    "sh",
    "-c",
    script,
    "sh",
  )


def can_mount(tmp_path):
  if shutil.which("unshare") is None:
    return False
  mount = tmp_path / "try"
  mount.mkdir()
  (mount / "run" / "checkpoints").mkdir(parents=True)
  return (
    subprocess.run(
      [*small_disk(mount, "1m"), "true"], capture_output=True, check=False
    ).returncode
    == 0
  )


# Whether a checkpoint or a line of metrics is the first that does not fit is
# a matter of chance, and of the room for it.
@pytest.mark.parametrize("checkpoints_that_fit", [3.1, 4.5])
def test_a_full_disk_is_a_clear_error_and_old_checkpoints_stand(
  shared, reference_run, tmp_path, checkpoints_that_fit
):
  if not can_mount(tmp_path):
    pytest.skip("this system lets no user mount a small disk to fill")
  mount = tmp_path / "disk"
  mount.mkdir()
  size = sum(
    f.stat().st_size
    for f in (reference_run / "checkpoints" / str(STEPS)).rglob("*")
    if f.is_file()
  )
  process = start(
    shared,
    mount / "run",
    "--config.checkpoint.keep_last=100",
    wrapper=small_disk(mount, int(size * checkpoints_that_fit)),
  )
  code = process.wait(timeout=240)
  output = Path(f"{mount / 'run'}.log").read_text()
  assert code == 1
  assert "could not be written" in output
  assert "are intact" in output
  left = [s for s in (tmp_path / "left").read_text().split() if s.isdecimal()]
  assert left, "no checkpoint is left"
