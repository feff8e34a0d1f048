"""PNG pictures of a run: its curves, and a handful of predictions."""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from matplotlib.figure import Figure

from training.metrics import is_evaluation


def plot_curves(rows: Sequence[dict[str, Any]], file: BinaryIO) -> None:
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
  figure.savefig(file, dpi=100)


def _line(panel: Any, rows: Sequence[dict[str, Any]], name: str, **style):
  # A diverged step stands in the file as null, and is a gap in the curve.
  values = [np.nan if row[name] is None else row[name] for row in rows]
  panel.plot([row["step"] for row in rows], values, label=name, **style)


def plot_predictions(
  images: np.ndarray,
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  file: BinaryIO,
) -> None:
  """Draws images with what the model says of each.

  Args:
    images: uint8 `[count, height, width, channels]`.
    labels: true classes `[count]`, where one that is none (-1) means that
      nobody knows; or with ones at any number of true ones `[count, classes]`.
    probabilities: `[count, classes]`.
    class_names: a name for each class.
    file: where the PNG goes.
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
    true = _true_classes(label, len(class_names))
    wrong = len(true) > 0 and guess not in true
    panel.imshow(image.squeeze(), cmap="gray")
    panel.set_title(
      f"{class_names[guess]} ({p[guess]:.0%})"
      + (f"\nis {' or '.join(class_names[c] for c in true)}" if wrong else ""),
      color="red" if wrong else "black",
      fontsize=9,
      # Names are text: two dollars in them are no formula.
      parse_math=False,
    )
  figure.savefig(file, dpi=100)


def _true_classes(label: np.ndarray, num_classes: int) -> np.ndarray:
  if np.ndim(label):
    return np.flatnonzero(label)
  return np.array([label] if 0 <= label < num_classes else [], int)
