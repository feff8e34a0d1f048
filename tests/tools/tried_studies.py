"""What tests of studies share: one row of a study, on a copy of its page."""

import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from tools import study, study_command

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"


def check(
  command: study_command.Command,
  name: str,
  report: pathlib.Path,
  out: epath.Path,
  copied: pathlib.Path,
  **folders: epath.Path,
) -> list[float]:
  """Goes through a study, which must give finite figures and a table.

  Args:
    command: that does it.
    name: of the study.
    report: of the command.
    out: the folder of results.
    copied: a folder for a copy of the page.
    **folders: of the command.

  Returns:
    The figures.
  """
  module = command.find(name)
  # The others are the same code with other options.
  last = module.rows("test")[-1]
  kept = epath.Path(copied) / report.name
  page = command.page(kept, module)
  page.parent.mkdir(exist_ok=True)
  shutil.copy(command.page(report, module), page)
  before = page.read_text()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, "rows", lambda variant: [last])
    failures = command.run(
      out, [name], variant="test", seeds=[0], report=kept, **folders
    )
  assert failures == []
  assert page.read_text() != before
  lines = study.read_lines(page.with_suffix(".jsonl"))
  assert [(line["study"], line["row"]) for line in lines] == [(name, last[0])]
  figures = [lines[0].get(figure) for figure, _ in module.COLUMNS]
  values = [figure for figure in figures if figure is not None]
  assert values
  assert np.isfinite(values).all()
  return values
