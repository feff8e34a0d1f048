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

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

import experiment
from experiment.weights import load_weights
from tools import studies, study, study_command
from training import metrics


class Study(study_command.Study):
  """Does what is not done of studies, in one folder."""

  def __init__(self, out: epath.Path, variant: str):
    """Reads what is done.

    Args:
      out: the folder of runs and results.
      variant: of the studies.
    """
    results = study.Results(out / "results.jsonl", "language_study")
    super().__init__(results, variant)
    self._runs = out / "runs"

  def rows(self, module: Any) -> list[tuple[str, study.Row]]:
    """Rows by name."""
    return [(row.name, row) for row in module.rows(self._variant)]

  def tables(
    self, name: str, module: Any, lines: Sequence[study.Line]
  ) -> Mapping[str, str]:
    """Those that the study makes."""
    del name
    return module.tables(lines)

  def line(
    self, name: str, module: Any, row: str, options: study.Row, seed: int
  ) -> study.Line:
    """Trains and measures a row; of both, what is not done."""
    key = {"study": name, "row": row, "seed": seed}
    key |= {"variant": self._variant, "config": None}
    run = {}
    if options.config is not None:
      config, folder = self._prepared(options, seed)
      key["config"] = folder
      run = self._trained(config, folder)
    measured = {"cpu_seconds": 0.0, "seconds": 0.0}
    if hasattr(module, "measure"):
      # What is measured otherwise is measured anew.
      key["measure"] = study.text_digest(inspect.getsource(module.measure))

      def measure() -> Mapping[str, Any]:
        if options.config is None:
          return module.measure(study.Run(options, seed))
        return self._measured(module.measure, options, seed, config, folder)

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


COMMAND = study_command.Command(__doc__, studies, Study)

if __name__ == "__main__":
  study_command.quiet()
  COMMAND.main()
