"""PNG pictures of a run: its curves, and a handful of predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from training.metrics import is_evaluation


def plot_curves(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
  """Draws loss, accuracy and learning rate over steps from metrics.jsonl."""
  figure = Figure(figsize=(12, 3.5), layout="constrained")
  panels = figure.subplots(1, 3)
  train = [row for row in rows if "train/loss" in row]
  evaluations = [row for row in rows if is_evaluation(row)]
  for panel, name in zip(panels, ("loss", "accuracy"), strict=False):
    _line(panel, train, f"train/{name}", alpha=0.6)
    _line(panel, evaluations, f"eval/{name}", marker="o", markersize=3)
    panel.set_title(name)
    panel.legend()
  panels[0].set_yscale("log")
  _line(panels[2], train, "train/learning_rate")
  panels[2].set_title("learning rate")
  for panel in panels:
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
  figure.savefig(path, dpi=100)


def _line(panel: Any, rows: Sequence[dict[str, Any]], name: str, **style):
  # A diverged step stands in the file as null, and is a gap in the curve.
  values = [np.nan if row[name] is None else row[name] for row in rows]
  panel.plot([row["step"] for row in rows], values, label=name, **style)


def plot_predictions(
  images: np.ndarray,
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  path: str | Path,
) -> None:
  """Draws images with what the model says of each.

  Args:
    images: uint8 `[count, height, width, channels]`.
    labels: true classes `[count]`.
    probabilities: `[count, classes]`.
    class_names: a name for each class.
    path: where the PNG goes.
  """
  columns = min(len(images), 8)
  rows = -(-len(images) // columns)
  figure = Figure(figsize=(1.5 * columns, 1.9 * rows), layout="constrained")
  panels = figure.subplots(rows, columns, squeeze=False).ravel()
  for panel in panels:
    panel.axis("off")
  for panel, image, label, p in zip(
    panels, images, labels, probabilities, strict=False
  ):
    guess = int(p.argmax())
    known = 0 <= label < len(class_names)  # Test splits may have -1.
    panel.imshow(image.squeeze(), cmap="gray")
    panel.set_title(
      f"{class_names[guess]} ({p[guess]:.0%})"
      + (f"\nis {class_names[label]}" if known and guess != label else ""),
      color="red" if known and guess != label else "black",
      fontsize=9,
    )
  figure.savefig(path, dpi=100)
