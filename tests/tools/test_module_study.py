"""Studies of modules: each one tried, on the page of its group."""

import pathlib
import shutil
import types

import numpy as np
import pytest
from etils import epath

from tools import module_study, study

PAGES = pathlib.Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  """The folder of what studies have in common."""
  return epath.Path(tmp_path_factory.mktemp("studies"))


@pytest.mark.slow  # It trains a very small model.
@pytest.mark.parametrize("name", module_study.names())
def test_every_study_goes_through(name, out, tmp_path, monkeypatch):
  module = module_study.find(name)
  # The others are the same code with other options.
  last = module.rows("test")[-1]
  monkeypatch.setattr(module, "rows", lambda variant: [last])
  report = epath.Path(tmp_path)
  page = report / f"{module.GROUP}.md"
  shutil.copy(PAGES / page.name, page)
  failures = module_study.run(
    out, [name], variant="test", seeds=[0], report=report
  )
  assert failures == []
  lines = study.read_lines(page.with_suffix(".jsonl"))
  assert [(line["study"], line["row"]) for line in lines] == [(name, last[0])]
  figures = [lines[0].get(figure) for figure, _ in module.COLUMNS]
  values = [figure for figure in figures if figure is not None]
  assert values
  assert np.isfinite(values).all()


def test_a_mean_has_its_sign_and_a_deviation_none():
  assert study.spread([0.01, 0.03], "+.1%") == "+2.0% ± 1.4%"
  assert study.spread([-1.0], "+.1f") == "-1.0"
  assert study.spread([], ".1f") == ""


def test_a_study_has_its_own_seeds_and_finds_what_it_kept(
  tmp_path, monkeypatch
):
  def measure(folder, name, options, seed, variant):
    kept = folder / "trunk"
    assert (name, seed) == ("first", 0) or kept.exists()
    kept.write_text("trained")
    return {"score": float(seed)}

  module = types.SimpleNamespace(
    GROUP="made_up",
    TITLE="Made up",
    TEXT="What it says.",
    SEEDS=(0, 1, 2, 3, 4),
    COLUMNS=(("score", ".1f"),),
    rows=lambda variant: [("first", {}), ("second", {})],
    measure=measure,
  )
  monkeypatch.setattr(module_study, "find", lambda name: module)
  page = epath.Path(tmp_path / "made_up.md")
  marks = ("study", "cost")
  page.write_text(
    "".join(f"<!-- begin: {m} -->\n<!-- end: {m} -->\n" for m in marks)
  )
  failures = module_study.run(
    epath.Path(tmp_path), ["study"], report=epath.Path(tmp_path)
  )
  assert failures == []
  assert "| second | 2.0 ± 1.6 |" in page.read_text()
  assert "| study | 10 |" in page.read_text()
  assert len(study.read_lines(page.with_suffix(".jsonl"))) == 10
