"""The command line as a process, since flags are parsed once in one."""

import json
import os
import subprocess
import sys

import pytest

from training import cli

SCRIPT = """
from training import cli, records
from absl import flags
from ml_collections import ConfigDict
def optional(config):
  sizes = {"small": {"model.depth": 3}, "large": {"model.width": 4.0}}
  return {"model.note": None} | sizes[config.model.name]
def load_run(run):
  return records.load_config(run, lambda _: ConfigDict())
options = {"steps": (3, "How many."), "seed": (0, "Of one.")}
cli.define_task_flags({"draw": options, "edit": options, "read": {
  "steps": (5, "How far.")}})
cli.define_config_flag(optional, load_run=load_run, default="weights")
flags.DEFINE_string("weights", None, "")
def main(argv):
  if flags.FLAGS.config.fail:
    raise ValueError("a=1 does not fit: use 2.")
  print("rate", flags.FLAGS.config.optimizer.learning_rate)
  print(flags.FLAGS.config.model.to_dict(), flags.FLAGS.config.get("folder"))
cli.run(main)
"""
CONFIG = """
from ml_collections import ConfigDict
def get_config(variant="a"):
  if variant != "a":
    raise ValueError(f"no variant {variant!r}; it has a.")
  fields = dict(fail=False, optimizer=dict(learning_rate=0.1))
  return ConfigDict(fields | dict(model=dict(name="small")))
"""


@pytest.fixture
def run(tmp_path):
  config = tmp_path / "config.py"
  config.write_text(CONFIG)
  script = tmp_path / "script.py"
  script.write_text(SCRIPT)

  def run(*arguments):
    arguments = [a.replace("CONFIG", str(config)) for a in arguments]
    if not any(a.startswith(("--config=", "--weights=")) for a in arguments):
      arguments.insert(0, f"--config={config}")
    return subprocess.run(
      [sys.executable, str(script), *arguments],
      capture_output=True,
      text=True,
      env=os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"},
      check=False,
    )

  return run


def test_fields_are_overridden(run):
  result = run("--config.optimizer.learning_rate=0.5")
  assert (result.returncode, result.stdout) == (
    0,
    "rate 0.5\n{'name': 'small'} None\n",
  )


def test_optional_fields_are_those_of_the_final_name(run):
  result = run("--config.model.width=2", "--config.model.name=large")
  assert result.returncode == 0, result.stderr
  assert "{'name': 'large', 'width': 2.0}" in result.stdout


def test_a_run_gives_the_config_that_is_overridden(run, tmp_path):
  saved = {"fail": False, "optimizer": {"learning_rate": 0.2}, "folder": None}
  saved["model"] = {"name": "small", "depth": 7}
  (tmp_path / "config.json").write_text(json.dumps(saved))
  result = run(
    "--config.folder=there", "--config.model.depth=8", f"--weights={tmp_path}"
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout == "rate 0.2\n{'depth': 8, 'name': 'small'} there\n"


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    (
      "--config.optimizer.learning_rat=1",
      "Did you mean optimizer.learning_rate?",
    ),
    ("--config.optimiser.learning_rate=1", "no such field"),
    ("--config.model.dept=1", "Did you mean model.depth"),
    ("--config.model.depth=deep", "model.depth=deep"),
    ("--config.model.note=x", "no such field"),
    ("--config.optimizer.learning_rate=fast", "fast"),
    ("--config=CONFIG:b", "no variant 'b'; it has a."),
    ("--config=/nowhere/config.py", "/nowhere/config.py"),
    ("--config.fail=true", "ValueError: a=1 does not fit: use 2."),
  ],
)
def test_user_errors_are_short(run, argument, message):
  result = run(argument)
  assert result.returncode != 0
  assert message in result.stderr
  assert "Traceback" not in result.stderr


def test_the_traceback_is_shown_when_asked_for(run):
  assert "Traceback" in run("--config.fail=true", "--traceback").stderr


def test_field_names_are_nested():
  from ml_collections import ConfigDict, config_dict

  config = ConfigDict(dict(a=1, b=dict(c=2, d=config_dict.placeholder(str))))
  assert cli.field_names(config) == ["a", "b.c", "b.d"]


def test_help_lists_flags_and_says_once_what_tasks_share(run):
  shown = " ".join(run("--help").stdout.split())
  assert "--config: A config file" in shown
  line = "draw, edit: How many. By default 3. read: How far. By default 5."
  assert f"--steps: {line}" in shown
  assert "--seed: draw, edit: Of one. By default 0." in shown
