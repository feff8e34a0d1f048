r"""Studies of language models: trains, evaluates and tabulates.

  python -m tools.language_study --out=runs/language_study \
    --report=docs/results/language.md

A study is a module of `tools/studies/`, found by listing them. Each run is a
folder of `<out>/runs` by the digest of its config, so rows of the same config
are trained once, whatever studies they are of; each measurement is a line of
`<out>/results.jsonl`. What is there is not done again, and a run that was
stopped goes on. A run that fails is told at the end, and its study has no
tables. Tables are printed, and put in place of those of `--report`, beside
which the lines are copied. `--variant=test` has one step of very small models.
"""

import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

import experiment
import storage
from experiment.weights import load_weights
from models import registry
from tools import studies, study, study_command
from training import console, metrics

COST = "cost"


def names() -> list[str]:
  """The studies there are."""
  return sorted(
    module.name for module in pkgutil.iter_modules(studies.__path__)
  )


def find(name: str) -> Any:
  """The module of a study.

  Raises:
    ValueError: if there is no such study, or names of its rows are not its own.
  """
  if name not in names():
    raise registry.unknown("study", name, names())
  return importlib.import_module(f"{studies.__name__}.{name}")


class Study:
  """Does what is not done of studies, in one folder."""

  def __init__(self, out: epath.Path, variant: str):
    """Reads what is done.

    Args:
      out: the folder of runs and results.
      variant: of the studies.
    """
    self._runs = out / "runs"
    self._results = study.Results(out / "results.jsonl", "language_study")
    self._variant = variant

  def lines(self, name: str, seeds: Sequence[int]) -> tuple[list, list[str]]:
    """Does a study.

    Args:
      name: of the study.
      seeds: of the runs of each row.

    Returns:
      (lines, failures): a line for each row and seed, of what was measured,
      and a sentence on each run that failed.

    Raises:
      ValueError: if two rows have one name, or a run was stopped: others do
        not begin then.
    """
    module = find(name)
    rows = module.rows(self._variant)
    if len({row.name for row in rows}) < len(rows):
      raise ValueError(
        f"study {name}: rows are {[row.name for row in rows]}, of which two "
        "have one name."
      )
    lines, failures = [], []
    for row in rows:
      for seed in seeds:
        try:
          lines.append(self._line(name, module, row, seed))
        except study.StoppedError:
          raise
        except study_command.ERRORS as error:
          what = f"{name}, {row.name}, seed {seed}"
          failures.append(f"{what}: {type(error).__name__}: {error}")
    return lines, failures

  def _line(
    self, name: str, module: Any, row: study.Row, seed: int
  ) -> study.Line:
    key = {"study": name, "row": row.name, "seed": seed}
    key |= {"variant": self._variant, "config": None}
    run = {}
    if row.config is not None:
      config, folder = self._prepared(row, seed)
      key["config"] = folder
      run = self._trained(config, folder)
    measured = {"cpu_seconds": 0.0, "seconds": 0.0}
    if hasattr(module, "measure"):
      # What is measured otherwise is measured anew.
      key["measure"] = _digest_of(module.measure)

      def measure() -> Mapping[str, Any]:
        if row.config is None:
          return module.measure(study.Run(row, seed))
        return self._measured(module.measure, row, seed, config, folder)

      measured = self._results.find_or_make(key, measure)
    spent = {
      of: round(run.get(of, 0.0) + measured[of], 1)
      for of in ("cpu_seconds", "seconds")
    }
    return {**run, **measured, **key, **spent}

  def _prepared(
    self, row: study.Row, seed: int
  ) -> tuple[ml_collections.ConfigDict, str]:
    """The config of a run and its folder, with what it begins with trained."""
    config = _with_seed(row.config, seed)
    if row.begins_with is None:
      return config, study.digest(config)
    first = _with_seed(row.begins_with, seed)
    config.init.weights = study.digest(first)
    # Of the weights' digest, so that `out` may be anywhere.
    folder = study.digest(config)
    self._trained(first, study.digest(first))
    config.init.weights = str(self._runs / study.digest(first))
    return config, folder

  def _trained(
    self, config: ml_collections.ConfigDict, folder: str
  ) -> study.Line:
    """What the training of a config and the task's evaluation gave."""

    def make() -> study.Line:
      workdir = str(self._runs / folder)
      _, line = study.train(config, workdir, show=False)
      return {**_last_evaluation(workdir), **line}

    return self._results.find_or_make({"what": "run", "config": folder}, make)

  def _measured(
    self,
    measure: Callable[[study.Run], Mapping[str, Any]],
    row: study.Row,
    seed: int,
    config: ml_collections.ConfigDict,
    folder: str,
  ) -> Mapping[str, Any]:
    setup = experiment.create_evaluation(config)
    with jax.set_mesh(setup.mesh):
      variables = load_weights(setup, str(self._runs / folder))
      return measure(
        study.Run(row, seed, config, setup.task, variables, setup.mesh)
      )


def _with_seed(
  config: ml_collections.ConfigDict, seed: int
) -> ml_collections.ConfigDict:
  config = config.copy_and_resolve_references()
  config.seed = seed
  return config


def _digest_of(function: Callable[..., Any]) -> str:
  return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


def _last_evaluation(workdir: str) -> study.Line:
  """The metrics of the last evaluation of a run."""
  evaluated = [
    line for line in metrics.read_metrics(workdir) if "eval/loss" in line
  ]
  return {
    name.removeprefix("eval/"): value
    for name, value in evaluated[-1].items()
    if name.startswith("eval/")
  }


def _pictures(module: Any, lines: Sequence[study.Line]) -> Mapping[str, bytes]:
  return module.pictures(lines) if hasattr(module, "pictures") else {}


def run(
  out: epath.Path,
  chosen: Sequence[str],
  *,
  variant: str = "full",
  seeds: Sequence[int] = study_command.SEEDS,
  report: epath.Path | None = None,
) -> list[str]:
  """Does studies and tabulates them.

  Args:
    out: the folder of runs and results.
    chosen: names of studies.
    variant: of `study_command.VARIANTS`.
    seeds: of the runs of each row.
    report: Markdown with marks for the tables; pictures go beside it. Lines of
      studies that are not chosen stay in the file of lines beside it.

  Returns:
    A sentence on each run that failed.

  Raises:
    ValueError: if there is no such study, or the report has no marks.
  """
  for name in chosen:
    find(name)
  work, failures, done = Study(out, variant), [], []
  for name in chosen:
    lines, failed = work.lines(name, seeds)
    failures += failed
    if failed:
      continue
    made = find(name).tables(lines)
    for mark, table in made.items():
      console.say(f"\n{mark}\n\n{table}")
    done += lines
    if report is not None:
      study.write_tables(report, made)
      for picture, content in _pictures(find(name), lines).items():
        storage.write_whole(report.parent / picture, content)
  if report is not None and done:
    study.keep(report, done, COST)
  return failures


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line, does what is left to do and tabulates."""
  study_command.main(__doc__, names(), run, argv)


if __name__ == "__main__":
  study_command.quiet()
  main()
