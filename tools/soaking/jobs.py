"""Small runs that are killed, and what they leave when they are not."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data import topics

ROOT = Path(__file__).parent.parent.parent
STEPS, SAVE_EVERY, EVALUATE_EVERY = 48, 4, 12
_CONFIGS = {
  "classification": "configs/digits.py:tiny",
  "language": "configs/language.py:test",
}


@dataclasses.dataclass(frozen=True)
class Job:
  """A kind of run.

  Attributes:
    name: "classification" or "language".
    processes: that train together.
    folder: for the data of all jobs.
  """

  name: str
  processes: int
  folder: Path

  def command(self, workdir: Path) -> list[str]:
    """The README's command for a run."""
    data = self.folder / "data"
    options = [
      f"--config={_CONFIGS[self.name]}",
      f"--config.data.data_dir={data}",
      f"--config.train_for={STEPS} steps",
      f"--config.evaluate_every={EVALUATE_EVERY} steps",
      f"--config.checkpoint.every={SAVE_EVERY} steps",
    ]
    if self.name == "language":
      data.mkdir(parents=True, exist_ok=True)
      text = data / "text.txt"
      if not text.exists():
        text.write_text("\n\n".join(topics.topics.values())[:20_000])
      options.append(f"--config.data.files={text}")
    return ["train.py", *options, f"--workdir={workdir}"]

  def sample_command(self, workdir: Path) -> list[str] | None:
    """Shows samples of a run; None if its models make nothing up."""
    if self.name != "language":
      return None
    return ["sample.py", f"--weights={workdir}", "--max_tokens=40"]


def run_plainly(arguments: list[str], log: Path) -> int:
  """Runs a program with an interpreter of its own; returns its exit code."""
  with log.open("a") as file:
    return subprocess.run(
      [sys.executable, *arguments],
      cwd=ROOT,
      stdout=file,
      stderr=file,
      check=False,
    ).returncode


def checkpoints(workdir: Path) -> list[int]:
  """Steps of the checkpoints that are whole, ascending."""
  folder = workdir / "checkpoints"
  names = os.listdir(folder) if folder.exists() else []
  return sorted(int(name) for name in names if name.isdecimal())


def is_writing(workdir: Path) -> bool:
  """Whether a checkpoint is being written."""
  folder = workdir / "checkpoints"
  names = os.listdir(folder) if folder.exists() else []
  return any("tmp" in name for name in names)


def last_step(workdir: Path) -> int:
  """Of the metrics that are there, 0 if there are none."""
  path = workdir / "metrics.jsonl"
  lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
  return json.loads(lines[-1])["step"] if lines else 0


def files(workdir: Path) -> dict[str, tuple[int, int]]:
  """Sizes and times of change of all files."""
  found = (path for path in workdir.rglob("*") if path.is_file())
  stats = {str(path): path.stat() for path in found}
  return {name: (s.st_size, s.st_mtime_ns) for name, s in stats.items()}


def digest(workdir: Path) -> dict[str, str]:
  """What a finished run is, to the bit: its last arrays and its metrics.

  Rates of work and shares of time are no part of it. It starts JAX, so it is
  called in a process of its own.
  """
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  with ocp.PyTreeCheckpointer() as reader:
    path = workdir / "checkpoints" / str(STEPS) / "state"
    tree = reader.metadata(path).item_metadata.tree
    arrays = reader.restore(
      path,
      restore_args=jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
      ),
    )
  state = hashlib.sha256()
  for name, array in jax.tree_util.tree_leaves_with_path(arrays):
    array = np.asarray(array)
    state.update(f"{name} {array.dtype} {array.shape}".encode())
    state.update(array.tobytes())
  rows = hashlib.sha256()
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    row = {
      key: value
      for key, value in json.loads(line).items()
      if not key.endswith(("_per_second", "goodput"))
    }
    rows.update(json.dumps(row, sort_keys=True).encode())
  return {"state": state.hexdigest(), "metrics": rows.hexdigest()}


if __name__ == "__main__":
  print(json.dumps(digest(Path(sys.argv[1]))))
