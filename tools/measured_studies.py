"""What studies of measured rows share: each row once, and a section of a page.

A study is a module with TITLE, TEXT, COLUMNS, `rows` and `measure`; see
`tools.generation_studies`, `tools.module_studies` and
`tools.interpret_studies`, packages of them.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from tools import study, study_command


class Study(study_command.Study):
  """Measures rows; a subclass says what of."""

  def key(self, module: Any) -> Mapping[str, Any]:
    """What a line has to tell what was measured, beside row and seed."""
    del module
    return {}

  def given(self, module: Any) -> Any:
    """What the study's `measure` is called with first."""
    raise NotImplementedError

  def line(
    self,
    name: str,
    module: Any,
    row: str,
    options: Mapping[str, Any],
    seed: int,
  ) -> study.Line:
    """See the base class."""
    key = {"study": name, "row": row, "seed": seed, "variant": self._variant}
    # What is measured otherwise, or of another model, is measured anew.
    key["measure"] = study.text_digest(
      inspect.getsource(module.measure), json.dumps(options, default=str)
    )
    key |= self.key(module)
    # Before the clock of the row runs.
    first = self.given(module)
    return self._results.find_or_make(
      key,
      lambda: module.measure(first, row, options, seed, self._variant),
    )

  def tables(
    self, name: str, module: Any, lines: Sequence[study.Line]
  ) -> Mapping[str, str]:
    """See the base class."""
    return {name: section(module, lines)}


class SharingStudy(Study):
  """Does studies whose rows share a folder, as of a trained trunk."""

  def __init__(self, out: epath.Path, variant: str, tool: str):
    """Reads what is done.

    Args:
      out: the folder of results.
      variant: of `study_command.VARIANTS`.
      tool: what measures, for people.
    """
    super().__init__(study.Results(out / "results.jsonl", tool), variant)
    self._shared = out / "shared" / variant

  def given(self, module: Any) -> epath.Path:
    """The folder of what rows share."""
    del module
    self._shared.mkdir(parents=True, exist_ok=True)
    return self._shared


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
