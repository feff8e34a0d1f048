"""What studies of measured rows share: each row once, lines, sections.

A study is a module with TITLE, TEXT, COLUMNS, `rows` and `measure`; see
`tools.generation_studies`, `tools.module_studies` and
`tools.interpret_studies`, packages of them.
"""

import hashlib
import importlib
import inspect
import json
import pkgutil
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from models import registry
from tools import study, study_command
from training import console

COST = "cost"


def names(package: types.ModuleType) -> list[str]:
  """The studies of a package."""
  listed = pkgutil.iter_modules(package.__path__)
  return sorted(module.name for module in listed)


def find(package: types.ModuleType, name: str) -> Any:
  """The module of a study.

  Raises:
    ValueError: if the package has no such study.
  """
  if name not in names(package):
    raise registry.unknown("study", name, names(package))
  return importlib.import_module(f"{package.__name__}.{name}")


class Study:
  """Does what is not done of studies; a subclass says what they measure."""

  def __init__(self, results: study.Results, variant: str):
    """Makes it.

    Args:
      results: what is done.
      variant: of `study_command.VARIANTS`.
    """
    self._results = results
    self._variant = variant

  def key(self, module: Any) -> Mapping[str, Any]:
    """What a line has to tell what was measured, beside row and seed."""
    del module
    return {}

  def given(self, module: Any) -> Any:
    """What the study's `measure` is called with first."""
    raise NotImplementedError

  def lines(
    self, name: str, module: Any, seeds: Sequence[int]
  ) -> tuple[list[study.Line], list[str]]:
    """Does a study.

    Args:
      name: of the study.
      module: of that name.
      seeds: of each row.

    Returns:
      (lines, failures): a line for each row and seed, and a sentence on each
      that failed.

    Raises:
      ValueError: if two rows have one name.
    """
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
    key |= self.key(module)
    # Before the clock of the row runs.
    first = self.given(module)
    return self._results.find_or_make(
      key,
      lambda: module.measure(first, row, options, seed, self._variant),
    )


class SharingStudy(Study):
  """Does studies whose rows share a folder, as of a trained trunk."""

  def __init__(self, out: epath.Path, variant: str, tool: str):
    """Reads what is done.

    Args:
      out: the folder of results.
      variant: of `study_command.VARIANTS`.
      tool: what measures, for its lines.
    """
    super().__init__(study.Results(out / "results.jsonl", tool), variant)
    self._shared = out / "shared" / variant

  def given(self, module: Any) -> epath.Path:
    """The folder of what rows share."""
    del module
    self._shared.mkdir(parents=True, exist_ok=True)
    return self._shared


def _digest(*texts: str) -> str:
  return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def section(module: Any, lines: Sequence[study.Line]) -> str:
  """What a study measured, as Markdown: title, text, table.

  Args:
    module: of the study.
    lines: of its rows and seeds.
  """
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
  work: Study,
  modules: Mapping[str, Any],
  seeds: Sequence[int] | None,
  page: Callable[[Any], epath.Path | None],
) -> list[str]:
  """Does studies and tabulates them.

  Args:
    work: does them.
    modules: of studies, by name.
    seeds: of each row; None for the study's SEEDS, or else the usual ones.
    page: gives of a module the Markdown with marks for it, and for `COST`.
      Lines of other studies stay in the file of lines beside it.

  Returns:
    A sentence on each row that failed.

  Raises:
    ValueError: if two rows have one name, or a page has no marks.
  """
  failures = []
  for name, module in modules.items():
    own = seeds or getattr(module, "SEEDS", study_command.SEEDS)
    lines, failed = work.lines(name, module, own)
    failures += failed
    if failed:
      continue
    made = section(module, lines)
    console.say(f"\n{made}")
    report = page(module)
    if report is not None:
      study.write_tables(report, {name: made})
      study.keep(report, lines, COST)
  return failures
