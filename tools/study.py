"""What studies share: rows to train, lines of results, tables of them.

A study trains the models of its rows with several seeds, measures them, and
makes tables in Markdown of the lines that it keeps.
"""

import dataclasses
import hashlib
import json
import pathlib
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

import storage
import tasks
from train import train_and_evaluate
from training import console, train_state

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
  """A model of a study, that is trained with several seeds.

  Attributes:
    name: for people, and one of its kind in the study.
    config: of the run; its seed is replaced. None trains nothing: the row is
      what the study's `measure` makes of no model.
    begins_with: the config of a run whose weights this one starts from, of the
      same seed.
  """

  name: str
  config: ml_collections.ConfigDict | None
  begins_with: ml_collections.ConfigDict | None = None


@dataclasses.dataclass(frozen=True)
class Run:
  """A row with a seed, trained: what a study measures.

  Attributes:
    row: of the study.
    seed: of the run.
    config: of the run, with the seed; None where nothing is trained, as all
      that follows.
    task: with the model.
    variables: "params" and the other collections, of the last step.
    mesh: of devices.
  """

  row: Row
  seed: int
  config: ml_collections.ConfigDict | None = None
  task: tasks.Task | None = None
  variables: dict[str, Any] | None = None
  mesh: jax.sharding.Mesh | None = None


class StoppedError(ValueError):
  """A run was stopped before its end, as by SIGTERM."""


class Results:
  """What was measured, a line of JSON each, in the order of time."""

  def __init__(self, path: epath.Path, study: str):
    """Reads what there is.

    Args:
      path: of the lines.
      study: says who is at work.
    """
    self._path = path
    self._study = study
    self.rows: list[Line] = read_lines(path)

  def find_or_make(
    self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
  ) -> Line:
    """Adds `make()` and what it cost, unless there is a line of the key."""
    found = [row for row in self.rows if key.items() <= row.items()]
    if found:
      return found[0]
    described = ", ".join(f"{name} {value}" for name, value in key.items())
    console.say(f"{self._study}: {described}")
    began, cpu = time.perf_counter(), cpu_seconds()
    made = dict(make())
    made["cpu_seconds"] = round(cpu_seconds() - cpu, 1)
    made["seconds"] = round(time.perf_counter() - began, 1)
    self.rows.append({**made, **key})
    write_lines(self._path, self.rows)
    return self.rows[-1]


def read_lines(path: epath.Path) -> list[Line]:
  """Returns the lines of a file of results; none if there is no file."""
  lines = path.read_text().splitlines() if path.exists() else ()
  return [json.loads(line) for line in lines]


def write_lines(path: epath.Path, lines: Sequence[Mapping[str, Any]]) -> None:
  """Writes a file of results, whole or not at all."""
  text = "".join(json.dumps(line) + "\n" for line in lines)
  storage.write_whole(path, text)


def cpu_seconds() -> float:
  """Of all threads of this process and of the children that it waited for."""
  usages = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  used = [resource.getrusage(who) for who in usages]
  return sum(usage.ru_utime + usage.ru_stime for usage in used)


def digest(config: ml_collections.ConfigDict) -> str:
  """Returns what tells a config from others, 12 hexadecimal digits."""
  return text_digest(config.to_json(sort_keys=True))


def text_digest(*texts: str) -> str:
  """Returns what tells texts from others, 12 hexadecimal digits."""
  return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def train(
  config: ml_collections.ConfigDict, workdir: str, *, show: bool = True
) -> tuple[train_state.TrainState, Line]:
  """Trains to the end, from where an earlier call stopped.

  Args:
    config: of the run, with `train_for` in steps.
    workdir: of the run.
    show: see `train.train_and_evaluate`.

  Returns:
    (state, line): the state at the end, and train_steps and parameters.

  Raises:
    StoppedError: if the run was stopped before its end.
  """
  state = train_and_evaluate(config, workdir, show=show)
  if f"{int(state.step)} steps" != config.train_for:
    raise StoppedError(
      f"{workdir} was stopped at step {int(state.step)} of {config.train_for}; "
      "the same command goes on."
    )
  sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
  return state, {"train_steps": int(state.step), "parameters": sum(sizes)}


def spread(values: Sequence[float], digits: int | str) -> str:
  """Mean and deviation of what seeds gave; nothing of no values.

  Args:
    values: one of each seed.
    digits: after the point, or a format, as ".1%".
  """
  if not len(values):
    return ""
  form = digits if isinstance(digits, str) else f".{digits}f"
  mean = f"{np.mean(values):{form}}"
  if len(values) == 1:
    return mean
  # A format with a sign is for the mean.
  deviation = f"{np.std(values, ddof=1):{form}}".lstrip("+")
  return f"{mean} ± {deviation}"


def cost_table(lines: Sequence[Line]) -> str:
  """The table of what studies took; a run of several is in each of them."""
  rows = []
  for name in dict.fromkeys(line["study"] for line in lines):
    own = [line for line in lines if line["study"] == name]
    minutes = sum(line["cpu_seconds"] for line in own) / 60
    rows.append([name, str(len(own)), f"{minutes:.1f}"])
  return markdown(("study", "rows and seeds", "CPU min"), rows)


def keep(report: epath.Path, done: Sequence[Line], mark: str) -> None:
  """Copies lines beside a report, with the table of what studies took.

  Lines of other studies, that were there, stay.

  Args:
    report: a Markdown file.
    done: lines of some studies, all of each.
    mark: of the table.
  """
  kept = report.with_suffix(".jsonl")
  anew = {line["study"] for line in done}
  lines = [
    *(line for line in read_lines(kept) if line["study"] not in anew),
    *done,
  ]
  lines.sort(key=lambda line: line["study"])
  write_tables(report, {mark: cost_table(lines)})
  write_lines(kept, lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table of cells."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_tables(report: epath.Path, made: Mapping[str, str]) -> None:
  """Puts tables in place of those in a report.

  Args:
    report: a Markdown file with `<!-- begin: NAME -->` and `<!-- end: NAME -->`
      around each table.
    made: the tables by name.

  Raises:
    ValueError: if the marks of a table are not there.
  """
  text = report.read_text()
  for name, table in made.items():
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
      raise ValueError(
        f"report={str(report)!r} lacks {begin.strip()} or {end}."
      )
    text = f"{before}{begin}{table}\n{end}{after}"
  storage.write_whole(report, text)


# Of the smallest models and data that go through all of a study's code.
_SMALL_MODEL = {"width": 16, "heads": 2, "mlp_width": 16}
_SMALL_TEXT = pathlib.Path(__file__).parents[1] / "docs" / "language.md"


def shrunk(
  config: ml_collections.ConfigDict, *, depth: int = 0
) -> ml_collections.ConfigDict:
  """The same config with one step of a very small model, to be tried.

  Its mixers and options stay; heads that are given are two, and a window is 4.
  Text is a page of this project, in short rows; sequences are a few.

  Args:
    config: of the run.
    depth: layers; 0 for as many as there are.
  """
  config = config.copy_and_resolve_references()
  model = config.model
  model.update(_SMALL_MODEL)
  if depth:
    model.depth = depth
  if model.get("kv_heads"):
    model.kv_heads = 2
  if model.get("window"):
    model.window = 4
  config.batch_size = config.eval_batch_size = 4
  config.train_for = config.evaluate_every = config.checkpoint.every = "1 steps"
  config.optimizer.warmup = "0 steps"
  if "files" in config.data:
    config.data.update(files=str(_SMALL_TEXT), length=16)
  else:
    config.data.update(train_examples=8, eval_examples=8)
  return config
