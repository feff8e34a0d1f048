import pytest
from matplotlib.figure import Figure

from training import summary


def test_what_fails_at_the_end_is_said_with_its_reason(caplog):
  with summary.attempt("drawing the curves"):
    raise OSError("no space left")
  assert "drawing the curves failed: OSError: no space left" in caplog.text
  with pytest.raises(KeyboardInterrupt), summary.attempt("drawing"):
    raise KeyboardInterrupt


def test_curves_are_those_that_are_there(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    Figure, "savefig", lambda self, *_, **__: drawn.append(self)
  )
  rows = [
    {"step": 1, "train/loss": 2.0, "train/learning_rate": 0.1},
    {"step": 2, "train/loss": None, "train/learning_rate": 0.1},
    {"step": 2, "eval/loss": 1.0, "eval/bits": 3.0},
  ]
  monkeypatch.setattr(summary.metrics, "read_metrics", lambda _: rows)
  summary.write_curves(str(tmp_path), ("loss", "bits"))
  lines = [
    [line.get_label() for line in panel.lines] for panel in drawn[0].axes
  ]
  assert lines == [
    ["train/loss", "eval/loss"],
    ["eval/bits"],
    ["train/learning_rate"],
  ]
