"""A PNG picture of what a classifier says of a handful of images."""

from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

import numpy as np

_SHOWN = 24


def first_examples(
  batches: Iterable[Mapping[str, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
  """The first images and labels that the mask does not leave out.

  Args:
    batches: of an evaluation; no more are read than are needed.
  """
  found = []
  for batch in batches:
    rows = np.flatnonzero(batch["mask"])
    found += [(batch["image"][row], batch["label"][row]) for row in rows]
    if len(found) >= _SHOWN:
      break
  images, labels = zip(*found[:_SHOWN], strict=True)
  return np.stack(images), np.stack(labels)


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
  # Every process of every run would take its time to start.
  from matplotlib.figure import Figure

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
