"""The launch scripts, with programs in the place of gcloud and srun."""

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OPTIONS = ["--config=configs/digits.py:tiny", "--workdir=gs://a b/runs"]


@pytest.fixture
def launch(tmp_path):
  """Runs a script; returns its code, output, and what it called."""
  called = tmp_path / "called"
  for name in ("gcloud", "srun", "sudo"):
    program = tmp_path / name
    program.write_text(f'#!/bin/sh\nprintf "%s\\0" {name} "$@" >> {called}\n')
    program.chmod(0o755)

  def run(script, *arguments, folder=ROOT):
    called.write_text("")
    result = subprocess.run(
      [ROOT / "tools" / "launch" / script, *arguments],
      env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
      cwd=folder,
      capture_output=True,
      text=True,
      check=False,
    )
    words = called.read_text().split("\0")[:-1]
    return result.returncode, result.stdout + result.stderr, words

  return run


def test_slurm_starts_the_command_of_every_task(launch):
  code, output, words = launch("slurm.sh", *OPTIONS)
  assert code == 0, output
  assert words[-2:] == OPTIONS
  assert words[0] == "srun"
  assert words[-4:-2] == [".venv/bin/python", "train.py"]
  assert shlex.split(output) == words


def test_with_dry_run_commands_are_printed_and_nothing_else(launch):
  code, output, words = launch("slurm.sh", "--dry_run", *OPTIONS)
  assert (code, words) == (0, [])
  assert shlex.split(output)[-2:] == OPTIONS
  code, output, words = launch(
    "tpu_pod.sh", "delete", "--name=pod", "--zone=z", "--dry_run"
  )
  assert (code, words) == (0, [])
  assert "gcloud compute tpus queued-resources delete pod" in output


def test_a_pod_is_created_of_one_slice_or_several(launch):
  given = ["create", "--name=pod", "--zone=z", "--type=v5litepod-256"]
  given += ["--runtime=r"]
  _, output, one = launch("tpu_pod.sh", *given)
  assert shlex.split(output) == one
  assert "--node-id=pod" in one
  assert "--spot" not in one
  _, _, two = launch("tpu_pod.sh", *given, "--slices=2", "--spot")
  assert {"--node-count=2", "--node-prefix=pod", "--spot"} <= set(two)
  assert "--node-id=pod" not in two


def commands(words):
  """The commands for all hosts, by slice."""
  return {
    words[i + 1]: next(
      word.removeprefix("--command=")
      for word in words[i:]
      if word.startswith("--command=")
    )
    for i, word in enumerate(words)
    if word == "ssh"
  }


def test_all_hosts_start_the_same_once(launch, tmp_path):
  code, output, words = launch(
    "tpu_pod.sh",
    "start",
    "--name=pod",
    "--zone=z",
    "--slices=2",
    "--",
    *OPTIONS,
  )
  assert code == 0, output
  started = commands(words)
  assert list(started) == ["pod-0", "pod-1"]
  assert words.count("--worker=all") == 2
  # The number of a run that is over may be that of another program by now.
  (tmp_path / "foveal").mkdir()
  (tmp_path / "foveal" / "train.pid").write_text(f"{os.getpid()}\n")
  # On a host, with a program in the place of Python.
  python = tmp_path / "foveal" / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text(
    "#!/bin/sh\ntrap 'echo saved; exit' TERM\n"
    'printf "%s\\n" "$@"\nwhile :; do sleep 0.05; done\n'
  )
  python.chmod(0o755)

  def on_host(command):
    return subprocess.run(
      ["sh", "-c", command], cwd=tmp_path, capture_output=True, check=False
    )

  assert on_host(started["pod-0"]).returncode == 0
  again = on_host(started["pod-0"])
  assert again.returncode == 1
  assert b"is going on here already" in again.stderr
  log = tmp_path / "foveal" / "train.log"

  def wait_for(line):
    limit = time.monotonic() + 60
    while line not in log.read_text() and time.monotonic() < limit:
      time.sleep(0.02)

  # It has begun, and so would catch a signal.
  wait_for(OPTIONS[-1])
  _, _, words = launch("tpu_pod.sh", "stop", "--name=pod", "--zone=z")
  assert on_host(commands(words)["pod"]).returncode == 0
  wait_for("saved")
  assert log.read_text().splitlines() == ["train.py", *OPTIONS, "saved"]


@pytest.mark.parametrize(
  ("arguments", "error"),
  [
    (["start", "--name=pod", "--zone=z"], "needs the options of train.py"),
    (["create", "--name=pod", "--zone=z"], "create needs --type"),
    (["stop", "--zone=z"], "stop needs --name"),
    (["stopp", "--name=pod", "--zone=z"], "cannot stopp"),
    (["stop", "--nam=pod"], "there is no option --nam=pod"),
    ([], "say what to do"),
  ],
)
def test_what_is_missing_is_said_and_nothing_is_called(
  launch, arguments, error
):
  code, output, words = launch("tpu_pod.sh", *arguments)
  assert (code, words) == (2, [])
  assert error in output


@pytest.mark.parametrize("action", ["install", "watch", "logs", "state"])
def test_every_action_calls_what_it_prints(launch, action):
  code, output, words = launch(
    "tpu_pod.sh",
    action,
    "--name=pod",
    "--zone=z",
    "--repository=https://a",
    "--revision=r",
  )
  assert code == 0, output
  assert words[:3] == ["gcloud", "compute", "tpus"]
  for command in commands(words).values():
    subprocess.run(["sh", "-n", "-c", command], check=True)


def test_slurm_is_submitted_where_train_py_is(launch, tmp_path):
  code, output, words = launch("slurm.sh", *OPTIONS, folder=tmp_path)
  assert (code, words) == (2, [])
  assert f"{tmp_path} has no train.py" in output


def test_slurm_passes_on_the_cores_of_a_task(launch, tmp_path, monkeypatch):
  seen = tmp_path / "seen"
  (tmp_path / "srun").write_text(
    f'#!/bin/sh\necho "${{SRUN_CPUS_PER_TASK-none}}" >> {seen}\n'
  )
  monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
  launch("slurm.sh", *OPTIONS)
  monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
  launch("slurm.sh", *OPTIONS)
  assert seen.read_text().split() == ["none", "64"]


def test_a_branch_is_installed_as_it_is_now(launch, tmp_path):
  source = tmp_path / "a source"

  def git(*arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", source, *who, *arguments], check=True)

  def commit(name):
    (source / name).touch()
    git("add", name)
    git("commit", "--quiet", f"--message={name}")

  source.mkdir()
  git("init", "--quiet", "--initial-branch=main")
  commit("first")
  git("tag", "v1")
  # In the place of Python, of which a virtual environment is asked.
  python = tmp_path / "python"
  python.write_text(
    "#!/bin/sh\nmkdir -p .venv/bin\nln -s /bin/true .venv/bin/pip\n"
  )
  python.chmod(0o755)
  place = tmp_path / "host"
  place.mkdir()

  def install(revision):
    given = ["--name=pod", "--zone=z", f"--python={python}"]
    given += [f"--repository={source}", f"--revision={revision}"]
    _, _, words = launch("tpu_pod.sh", "install", *given)
    done = subprocess.run(
      ["sh", "-c", commands(words)["pod"]],
      cwd=place,
      capture_output=True,
      text=True,
      check=False,
    )
    there = {path.name for path in (place / "foveal").iterdir()}
    return done.returncode, there - {".git", ".venv"}, done.stderr

  assert install("main")[:2] == (0, {"first"})
  commit("second")
  assert install("main")[:2] == (0, {"first", "second"})
  assert install("v1")[:2] == (0, {"first"})
  assert install("v2") == (1, {"first"}, "there is no revision v2\n")
