"""The curves of a run as a PNG picture."""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np


def plot_curves(
  rows: Sequence[dict[str, Any]], names: Sequence[str], file: BinaryIO
) -> None:
  """Draws metrics and the learning rate over steps.

  Args:
    rows: of metrics.jsonl.
    names: of the metrics; each is drawn as it was in training and evaluation,
      where it was there.
    file: where the PNG goes.
  """
  # Every process of every run would take its time to start.
  from matplotlib.figure import Figure

  panels_count = len(names) + 1
  figure = Figure(figsize=(4 * panels_count, 3.5), layout="constrained")
  panels = figure.subplots(1, panels_count)
  for panel, name in zip(panels, names, strict=False):
    _line(panel, rows, f"train/{name}", alpha=0.6)
    _line(panel, rows, f"eval/{name}", marker="o", markersize=3)
    panel.set_title(name)
    panel.legend()
    if name == "loss":
      panel.set_yscale("log")
  _line(panels[-1], rows, "train/learning_rate")
  panels[-1].set_title("learning rate")
  for panel in panels:
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
  figure.savefig(file, dpi=100)


def _line(panel: Any, rows: Sequence[dict[str, Any]], name: str, **style):
  rows = [row for row in rows if name in row]
  # A diverged step stands in the file as null, and is a gap in the curve.
  values = [np.nan if row[name] is None else row[name] for row in rows]
  if rows:
    panel.plot([row["step"] for row in rows], values, label=name, **style)
