"""Studies of looking inside: each one tried, on their page."""

import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from tools import interpret_study, study

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "results" / "interpret.md"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  """The folder of what studies have in common."""
  return epath.Path(tmp_path_factory.mktemp("studies"))


@pytest.mark.slow  # It trains a very small model.
@pytest.mark.parametrize("name", interpret_study.names())
def test_every_study_goes_through(name, out, tmp_path, monkeypatch):
  module = interpret_study.find(name)
  # The others are the same code with other options.
  last = module.rows("test")[-1]
  monkeypatch.setattr(module, "rows", lambda variant: [last])
  report = epath.Path(tmp_path) / PAGE.name
  shutil.copy(PAGE, report)
  failures = interpret_study.run(
    out, [name], variant="test", seeds=[0], report=report
  )
  assert failures == []
  lines = study.read_lines(report.with_suffix(".jsonl"))
  assert [(line["study"], line["row"]) for line in lines] == [(name, last[0])]
  figures = [lines[0].get(figure) for figure, _ in module.COLUMNS]
  values = [figure for figure in figures if figure is not None]
  assert values
  assert np.isfinite(values).all()


def test_every_study_has_a_place_on_the_page():
  text = PAGE.read_text()
  for name in interpret_study.names():
    assert f"<!-- begin: {name} -->" in text
