"""What a run was: its config, versions, commit, devices and command."""

import importlib.metadata
import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import logging

import storage
from training import console, hosts

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "tensorflow-datasets",
  "ml_collections",
  "numpy",
)


# They say where arrays are, not what they are.
_PLACEMENT = ("mesh", "sharding_rules")


class ConfigMismatchError(ValueError):
  """The workdir holds a run with another config."""


def check_workdir(
  workdir: str,
  config: ml_collections.ConfigDict,
  *,
  defaults: Callable[[dict[str, Any]], ml_collections.ConfigDict],
  override: bool,
) -> None:
  """Compares the config with the one of the run that is there, if any.

  Another mesh, or other rules for it, is not another config: a run goes on on
  the devices that there are.

  Args:
    workdir: created if it does not exist.
    config: the run's config.
    defaults: of a saved config: what fields were that the run there did not
      have yet.
    override: go on with the new config although it differs.

  Raises:
    ConfigMismatchError: if they differ; names every field that does.
    ValueError: if the workdir cannot be created.
  """
  path = storage.path(workdir) / "config.json"
  try:
    storage.make_folder(path.parent)
    saved = storage.read_bytes_if_there(path)
  # ImportError: a bucket's file system is a package of its own.
  except (OSError, ImportError) as error:
    raise _not_writable(workdir, error) from error
  if saved is None:
    return
  saved = json.loads(saved)
  saved = _complete(saved, _to_json(defaults(saved)), workdir)
  changed, moved = [], []
  for difference in differences(saved, _to_json(config)):
    placed = difference.partition(":")[0].partition(".")[0] in _PLACEMENT
    (moved if placed else changed).append(difference)
  if moved:
    console.say(f"on other devices than before: {'; '.join(moved)}")
  if changed and not override:
    raise ConfigMismatchError(
      f"{workdir} holds a run with another config; {len(changed)} field(s) "
      f"differ: {'; '.join(changed)}. Choose another --workdir, or pass "
      "--override_config to go on from its checkpoints with the new config."
    )


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
  """Writes config.json, which makes the workdir that of this run.

  To be called once there is a state to train: a start that failed before, for
  want of weights for example, leaves the workdir free.

  Raises:
    ValueError: if it cannot be written.
  """
  if jax.process_index() == 0:
    path = storage.path(workdir) / "config.json"
    try:
      storage.write_whole(path, _to_text(_to_json(config)))
    except OSError as error:
      raise _not_writable(workdir, error) from error


def check_hosts(config: ml_collections.ConfigDict) -> None:
  """Compares what this run is with what it is in the other processes.

  Raises:
    HostsError: if they have another config or another version of the code.
  """
  if jax.process_count() > 1:
    hosts.check_same(
      {
        "config": json.dumps(_to_json(config), sort_keys=True),
        "git commit": str(git_commit()),
        "version of jax": jax.__version__,
      }
    )


def check_files(
  workdir: str, files: Mapping[str, bytes], field: str = "workdir"
) -> None:
  """Compares what a run keeps beside its config with what this one has.

  Args:
    workdir: of the run; files that it does not have are not compared.
    files: of this run, by name.
    field: that names the workdir, for the error.

  Raises:
    ConfigMismatchError: if one differs.
  """
  for name, content in files.items():
    saved = storage.read_bytes_if_there(storage.path(workdir) / name)
    if saved not in (None, content):
      raise ConfigMismatchError(
        f"{field}={workdir!r} has another {name} than this config makes: what "
        "was trained there does not fit it. Take the config of the run itself, "
        f"or the data and fields from which its {name} was made."
      )


def write_files(workdir: str, files: Mapping[str, bytes]) -> None:
  """Writes what a run keeps beside its config, by name.

  Raises:
    ValueError: if it cannot be written.
  """
  if jax.process_index() != 0:
    return
  for name, content in files.items():
    try:
      storage.write_whole(storage.path(workdir) / name, content)
    except OSError as error:
      raise _not_writable(workdir, error) from error


def _not_writable(workdir: str, error: Exception) -> ValueError:
  return ValueError(
    f"workdir={workdir!r} cannot be written: {error}. Choose a directory "
    "that you may write to."
  )


def _to_json(config: ml_collections.ConfigDict) -> Any:
  return json.loads(config.to_json_best_effort())


def _to_text(value: Any) -> str:
  return json.dumps(value, indent=2) + "\n"


def load_config(
  workdir: str,
  defaults: Callable[[dict[str, Any]], ml_collections.ConfigDict],
) -> ml_collections.ConfigDict:
  """Reads the config of the run in `workdir`.

  Args:
    workdir: of a run.
    defaults: of the saved config: the values of fields that the run did not
      have yet; which these are is said.

  Raises:
    ValueError: if there is no run.
  """
  saved = storage.read_bytes_if_there(storage.path(workdir) / "config.json")
  if saved is None:
    raise ValueError(
      f"{workdir!r} holds no run: there is no config.json. Give the --workdir "
      "of a training run."
    )
  saved = json.loads(saved)
  return ml_collections.ConfigDict(
    _tuples(_complete(saved, _to_json(defaults(saved)), workdir))
  )


def _complete(saved: Any, defaults: Any, workdir: str) -> Any:
  """The saved config, with the fields that it did not have yet."""
  whole = _merge(defaults, saved)
  added = [
    line.replace("not there -> ", "") for line in differences(saved, whole)
  ]
  if added:
    logging.warning(
      "The run in %s is older than some fields of the config, which have their "
      "defaults: %s",
      workdir,
      "; ".join(added),
    )
  return whole


def _merge(base: Any, over: Any) -> Any:
  if not (isinstance(base, dict) and isinstance(over, dict)):
    return over
  return base | {
    key: _merge(base.get(key), value) for key, value in over.items()
  }


def differences(old: Any, new: Any, name: str = "") -> list[str]:
  """Describes each leaf in which two nested dictionaries differ."""
  if isinstance(old, dict) and isinstance(new, dict):
    found = []
    for key in sorted(old.keys() | new.keys()):
      inner = f"{name}.{key}" if name else key
      if key not in old:
        found.append(f"{inner}: not there -> {new[key]!r}")
      elif key not in new:
        found.append(f"{inner}: {old[key]!r} -> not there")
      else:
        found += differences(old[key], new[key], inner)
    return found
  return [] if old == new else [f"{name}: {old!r} -> {new!r}"]


class StartRecord:
  """The record of this start in `<workdir>/run.json`, after those before it.

  Only process 0 writes.
  """

  def __init__(
    self, workdir: str, mesh: jax.sharding.Mesh, task: Mapping[str, Any]
  ):
    """Appends it.

    Args:
      workdir: of the run.
      mesh: the device mesh.
      task: what the task has to say of itself.
    """
    self._path = storage.path(workdir) / "run.json"
    self._starts = json.loads(storage.read_bytes_if_there(self._path) or "[]")
    # Starts of before this was recorded took nobody knows how long.
    self.earlier = sum(start.get("seconds", 0.0) for start in self._starts)
    self._starts.append(_describe_start(mesh, task))
    self._write()

  def write_seconds(self, seconds: float) -> None:
    """Records how long this start has taken until now."""
    self._starts[-1]["seconds"] = round(seconds, 2)
    self._write()

  def _write(self) -> None:
    if jax.process_index() == 0:
      storage.write_whole(self._path, _to_text(self._starts))


def _describe_start(
  mesh: jax.sharding.Mesh, task: Mapping[str, Any]
) -> dict[str, Any]:
  return {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "command": shlex.join([sys.executable, *sys.argv]),
    "git_commit": git_commit(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processes": jax.process_count(),
    "mesh": dict(mesh.shape),
    "python": platform.python_version(),
    "task": dict(task),
    "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
    "seconds": 0.0,
  }


def git_commit() -> str | None:
  """The commit of this source tree, "-dirty" if changed; None outside git."""
  if shutil.which("git") is None:
    return None
  result = subprocess.run(
    ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    cwd=Path(__file__).parent,
    capture_output=True,
    text=True,
    check=False,
  )
  return result.stdout.strip() if result.returncode == 0 else None


def _tuples(value: Any) -> Any:
  # JSON has lists only, and the configs use tuples only.
  if isinstance(value, dict):
    return {key: _tuples(inner) for key, inner in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(inner) for inner in value)
  return value
