"""Studies of diffusion models: each one tried, and what is done once."""

import functools
import types

import numpy as np
import pytest
from etils import epath

from sample_metrics import classifier, frames
from tests.tools import tried_studies
from tools import generation_study, generation_subject, study, study_command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Of the subjects that studies have in common."""
  return epath.Path(tmp_path_factory.mktemp("studies"))


@pytest.fixture(autouse=True, scope="module")
def _quick_subjects():
  """One of each for all studies, and classifiers that need not be good here."""
  trained = functools.cache(generation_subject.trained)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(generation_subject, "trained", trained)
    patch.setattr(classifier, "_TRAIN_FOR", "2 steps")
    patch.setattr(classifier, "_TRAINED", {})
    patch.setattr(frames, "_STEPS", 2)
    patch.setattr(frames, "_TRAINED", {})
    yield


@pytest.mark.slow  # It trains a subject and samples from it, if in few steps.
@pytest.mark.parametrize("name", generation_study.COMMAND.names())
def test_every_study_goes_through(name, folder, tmp_path):
  values = tried_studies.check(
    generation_study.COMMAND,
    name,
    tried_studies.RESULTS / "generation.md",
    epath.Path(tmp_path),
    tmp_path,
    subjects=folder,
  )
  assert len(values) >= 2


def made_up(**fields):
  return types.SimpleNamespace(
    TITLE="Made up",
    TEXT="What it says.",
    SUBJECT=None,
    COLUMNS=(("share", ".1%"), ("score", ".2f")),
    **fields,
  )


def test_lines_are_kept_and_become_a_table(tmp_path, monkeypatch):
  asked = []

  def measure(subject, name, options, seed, variant):
    assert subject is None
    assert variant == "test"
    asked.append((name, seed))
    return {"share": options["share"], "score": float(seed)}

  rows = [("dense", {"share": 1.0}), ("sparse", {"share": 0.25})]
  module = made_up(rows=lambda variant: rows, measure=measure)
  monkeypatch.setattr(
    study_command.Command, "find", lambda command, name: module
  )
  report = epath.Path(tmp_path / "report.md")
  marks = ("made_up", "cost")
  report.write_text(
    "".join(f"<!-- begin: {m} -->\n<!-- end: {m} -->\n" for m in marks)
  )
  for _ in range(2):
    failures = generation_study.COMMAND.run(
      epath.Path(tmp_path), ["made_up"], variant="test", report=report
    )
    assert failures == []
  assert asked == [(name, s) for name, _ in rows for s in (0, 1, 2)]
  text = report.read_text()
  assert "## Made up\n\nWhat it says.\n\n| row | share | score |" in text
  assert "| sparse | 25.0% ± 0.0% | 1.00 ± 1.00 |" in text
  assert "| made_up | 6 |" in text
  # Other options are another measurement.
  rows[1] = ("sparse", {"share": 0.5})
  generation_study.COMMAND.run(
    epath.Path(tmp_path), ["made_up"], variant="test", report=report
  )
  assert asked[6:] == [("sparse", s) for s in (0, 1, 2)]


def test_a_row_that_fails_is_told_and_others_go_on(tmp_path, monkeypatch):
  def measure(subject, name, options, seed, variant):
    if name == "bad":
      raise ValueError("window=3 fits not")
    return {"share": 1.0, "score": 1.0}

  module = made_up(
    rows=lambda variant: [("bad", {}), ("good", {})], measure=measure
  )
  monkeypatch.setattr(
    study_command.Command, "find", lambda command, name: module
  )
  arguments = [f"--out={tmp_path}", f"--subjects={tmp_path}", "--seeds", "0"]
  failure = "made_up, bad, seed 0: ValueError: window=3 fits not"
  with pytest.raises(SystemExit, match=f"failed:\n{failure}$"):
    generation_study.COMMAND.main([*arguments, "--studies", "made_up"])
  done = study.read_lines(epath.Path(tmp_path) / "results.jsonl")
  assert [line["row"] for line in done] == ["good"]


def test_samples_are_averaged_down_and_compared_by_their_ink():
  x = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6, 1)
  small = generation_subject.shrunk(x, (2, 3))
  assert small.shape == (2, 2, 3, 1)
  assert small[1, 1, 2, 0] == x[1, 2:, 4:].mean()
  with pytest.raises(
    ValueError, match=r"sides \(4, 6\).*multiples of \(3, 3\)"
  ):
    generation_subject.shrunk(x, (3, 3))
  black = -np.ones((2, 3, 3, 1))
  left, right = black.copy(), black.copy()
  left[:, 0], right[:, 2] = 1, 1
  assert generation_subject.cosine_to_dense(left, right) == 0
  assert generation_subject.cosine_to_dense(left, left) == pytest.approx(1)
