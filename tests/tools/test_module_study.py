"""Studies of modules: each one tried, on the page of its group."""

import types

import pytest
from etils import epath

from tests.tools import tried_studies
from tools import module_study, study, study_command


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  """The folder of what studies have in common."""
  return epath.Path(tmp_path_factory.mktemp("studies"))


@pytest.mark.slow  # It trains a very small model.
@pytest.mark.parametrize("name", module_study.COMMAND.names())
def test_every_study_goes_through(name, out, tmp_path):
  tried_studies.check(
    module_study.COMMAND, name, tried_studies.RESULTS, out, tmp_path
  )


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
  monkeypatch.setattr(
    study_command.Command, "find", lambda command, name: module
  )
  page = epath.Path(tmp_path / "made_up.md")
  marks = ("study", "cost")
  page.write_text(
    "".join(f"<!-- begin: {m} -->\n<!-- end: {m} -->\n" for m in marks)
  )
  failures = module_study.COMMAND.run(
    epath.Path(tmp_path), ["study"], report=epath.Path(tmp_path)
  )
  assert failures == []
  assert "| second | 2.0 ± 1.6 |" in page.read_text()
  assert "| study | 10 |" in page.read_text()
  assert len(study.read_lines(page.with_suffix(".jsonl"))) == 10
