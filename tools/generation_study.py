r"""Studies of diffusion models: what each system of attention does to samples.

  python -m tools.generation_study --out=runs/generation_study \
    --report=docs/results/generation.md

A study is a module of `tools/generation_studies/`, found by listing them. The
models that studies change are trained first, each once, in `<out>/subjects`;
`--subjects` names another folder of them. Each measurement, of a row of a study
with a seed, is a line of `<out>/results.jsonl`, and what is there is not
measured again. Tables are printed, and put in place of those of `--report`,
beside which the lines are copied. A row that fails is told at the end, and its
study has no table. `--variant=test` goes through all of it with very small
models.
"""

import hashlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from models import registry
from tools import generation_studies, generation_subject, study, study_command
from training import console

COST = "cost"


def names() -> list[str]:
  """The studies there are."""
  listed = pkgutil.iter_modules(generation_studies.__path__)
  return sorted(module.name for module in listed)


def find(name: str) -> Any:
  """The module of a study.

  Raises:
    ValueError: if there is no such study.
  """
  if name not in names():
    raise registry.unknown("study", name, names())
  return importlib.import_module(f"{generation_studies.__name__}.{name}")


class Study:
  """Does what is not done of studies, in one folder."""

  def __init__(
    self, out: epath.Path, variant: str, subjects: epath.Path | None = None
  ):
    """Reads what is done.

    Args:
      out: the folder of results.
      variant: of `study_command.VARIANTS`.
      subjects: the folder of trained models; within `out` if None.
    """
    self._results = study.Results(out / "results.jsonl", "generation_study")
    self._variant = variant
    self._folder = subjects or out / "subjects"
    self._subjects: dict[str, generation_subject.Subject] = {}

  def lines(
    self, name: str, seeds: Sequence[int]
  ) -> tuple[list[study.Line], list[str]]:
    """Does a study.

    Returns:
      (lines, failures): a line for each row and seed, and a sentence on each
      that failed.

    Raises:
      ValueError: if two rows have one name.
    """
    module = find(name)
    rows = module.rows(self._variant)
    if len({row for row, _ in rows}) < len(rows):
      raise ValueError(
        f"study {name}: rows are {[row for row, _ in rows]}, of which two have "
        "one name."
      )
    lines, failures = [], []
    for row, options in rows:
      for seed in seeds:
        try:
          lines.append(self._line(name, module, row, options, seed))
        except study.StoppedError:
          raise
        except study_command.ERRORS as error:
          what = f"{name}, {row}, seed {seed}"
          failures.append(f"{what}: {type(error).__name__}: {error}")
    return lines, failures

  def _line(
    self,
    name: str,
    module: Any,
    row: str,
    options: Mapping[str, Any],
    seed: int,
  ) -> study.Line:
    key = {"study": name, "row": row, "seed": seed, "variant": self._variant}
    # What is measured otherwise, or of another model, is measured anew.
    key["measure"] = _digest(
      inspect.getsource(module.measure), json.dumps(options, default=str)
    )
    key["subject"] = None
    if module.SUBJECT:
      config = generation_subject.config(module.SUBJECT, self._variant)
      key["subject"] = f"{module.SUBJECT}_{study.digest(config)}"

    def measure() -> Mapping[str, Any]:
      subject = self._subject(module.SUBJECT) if module.SUBJECT else None
      return module.measure(subject, row, options, seed, self._variant)

    if module.SUBJECT:
      # Before the clock of the row runs.
      self._subject(module.SUBJECT)
    return self._results.find_or_make(key, measure)

  def _subject(self, name: str) -> generation_subject.Subject:
    if name not in self._subjects:
      key = {"what": "subject", "subject": name, "variant": self._variant}
      config = generation_subject.config(name, self._variant)
      key["config"] = study.digest(config)
      found: list[generation_subject.Subject] = []

      def make() -> dict[str, Any]:
        found.append(
          generation_subject.trained(name, self._variant, self._folder)
        )
        return {}

      self._results.find_or_make(key, make)
      if not found:
        make()
      self._subjects[name] = found[0]
    return self._subjects[name]


def _digest(*texts: str) -> str:
  return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def section(name: str, lines: Sequence[study.Line]) -> str:
  """What a study measured, as Markdown: title, text, table.

  Args:
    name: of the study.
    lines: of its rows and seeds.
  """
  module = find(name)
  rows = []
  for row in dict.fromkeys(line["row"] for line in lines):
    own = [line for line in lines if line["row"] == row]
    cells = [
      study.spread(
        [line[figure] for line in own if line.get(figure) is not None], form
      )
      for figure, form in module.COLUMNS
    ]
    rows.append((row, *cells))
  header = ("row", *(figure.replace("_", " ") for figure, _ in module.COLUMNS))
  return (
    f"## {module.TITLE}\n\n{module.TEXT.strip()}\n\n"
    f"{study.markdown(header, rows)}"
  )


def run(
  out: epath.Path,
  chosen: Sequence[str],
  *,
  variant: str = "full",
  seeds: Sequence[int] = study_command.SEEDS,
  subjects: epath.Path | None = None,
  report: epath.Path | None = None,
) -> list[str]:
  """Does studies and tabulates them.

  Args:
    out: the folder of results.
    chosen: names of studies.
    variant: of `study_command.VARIANTS`.
    seeds: of each row: of samples, or of training where a row trains.
    subjects: the folder of trained models; within `out` if None.
    report: Markdown with marks for each study. Lines of studies that are not
      chosen stay in the file of lines beside it.

  Returns:
    A sentence on each row that failed.

  Raises:
    ValueError: if there is no such study, or the report has no marks.
  """
  for name in chosen:
    find(name)
  work, failures, done = Study(out, variant, subjects), [], []
  for name in chosen:
    lines, failed = work.lines(name, seeds)
    failures += failed
    if failed:
      continue
    made = section(name, lines)
    console.say(f"\n{made}")
    done += lines
    if report is not None:
      study.write_tables(report, {name: made})
  if report is not None and done:
    study.keep(report, done, COST)
  return failures


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line, does what is left to do and tabulates."""
  study_command.main(
    __doc__,
    names(),
    run,
    argv,
    folders={"subjects": "folder of trained models"},
  )


if __name__ == "__main__":
  study_command.quiet()
  main()
