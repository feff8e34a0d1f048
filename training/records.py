"""What a run was: its config, versions, commit, devices and command."""

import importlib.metadata
import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
from etils import epath

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


class ConfigMismatchError(ValueError):
  """The workdir holds a run with another config."""


def claim_workdir(
  workdir: str, config: ml_collections.ConfigDict, *, override: bool
) -> None:
  """Writes config.json, or compares the config with the one that is there.

  Args:
    workdir: created if it does not exist.
    config: the run's config.
    override: go on with the new config although it differs.

  Raises:
    ConfigMismatchError: if they differ; names every field that does.
    ValueError: if the workdir cannot be written.
  """
  path = epath.Path(workdir) / "config.json"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = json.loads(path.read_text()) if path.exists() else None
    new = json.loads(config.to_json_best_effort())
    changed = [] if saved is None else differences(saved, new)
    if changed and not override:
      raise ConfigMismatchError(
        f"{workdir} holds a run with another config; {len(changed)} field(s) "
        f"differ: {'; '.join(changed)}. Choose another --workdir, or pass "
        "--override_config to go on from its checkpoints with the new config."
      )
    if jax.process_index() == 0:
      # Through a second name: a killed process must not leave half a config.
      partial = path.parent / "config.json.partial"
      partial.write_text(json.dumps(new, indent=2) + "\n")
      partial.replace(path)
  except OSError as error:
    raise ValueError(
      f"workdir={workdir!r} cannot be written: {error}. Choose a directory "
      "that you may write to."
    ) from error


def load_config(workdir: str) -> ml_collections.ConfigDict:
  """Reads the config of the run in `workdir`.

  Raises:
    ValueError: if there is none.
  """
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    raise ValueError(
      f"{workdir!r} holds no run: there is no config.json. Give the --workdir "
      "of a training run."
    )
  return ml_collections.ConfigDict(_tuples(json.loads(path.read_text())))


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


def write_run_record(workdir: str, mesh: jax.sharding.Mesh) -> None:
  """Appends this start of the run to `<workdir>/run.json`."""
  if jax.process_index() != 0:
    return
  path = epath.Path(workdir) / "run.json"
  starts = json.loads(path.read_text()) if path.exists() else []
  starts.append(
    {
      "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
      "command": shlex.join([sys.executable, *sys.argv]),
      "git_commit": git_commit(),
      "device": jax.devices()[0].device_kind,
      "devices": jax.device_count(),
      "processes": jax.process_count(),
      "mesh": dict(mesh.shape),
      "python": platform.python_version(),
      "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
    }
  )
  partial = path.parent / "run.json.partial"
  partial.write_text(json.dumps(starts, indent=2) + "\n")
  partial.replace(path)


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
