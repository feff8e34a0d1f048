import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from tasks import predictions


@pytest.fixture
def figures(monkeypatch):
  """Those that were drawn, instead of their files."""
  drawn = []
  monkeypatch.setattr(
    Figure, "savefig", lambda self, *_, **__: drawn.append(self)
  )
  return drawn


def titles(figure):
  return [panel.get_title() for panel in figure.axes if panel.images]


def draw(labels, names=("cat", "dog"), guesses=None):
  labels = np.array(labels)
  probabilities = np.tile(np.float32([0.9, 0.1]), (len(labels), 1))
  images = np.zeros((len(labels), 4, 4, 1), np.uint8)
  predictions.plot_predictions(
    images, labels, probabilities, names, io.BytesIO()
  )


def test_titles_say_what_is_wrong_and_nothing_of_unknown_labels(figures):
  draw([0, 1, -1, 7])
  assert titles(figures[0]) == [
    "cat (90%)",
    "cat (90%)\nis dog",
    "cat (90%)",
    "cat (90%)",
  ]


def test_any_of_many_labels_is_right(figures):
  draw([[1, 1], [0, 1], [0, 0]])
  assert titles(figures[0]) == ["cat (90%)", "cat (90%)\nis dog", "cat (90%)"]


@pytest.mark.parametrize(
  "names", [("$$", "a"), (r"$\frac{1$", "b"), ("US$ {old} and $", "c")]
)
def test_names_of_classes_are_text(names):
  draw([0, 1], names)


def batches(*masks):
  for mask in masks:
    count = len(mask)
    yield {
      "image": np.zeros((count, 4, 4, 1), np.uint8),
      "label": np.ones(count, np.int32),
      "mask": np.array(mask, np.float32),
    }


def test_the_first_images_that_count_are_shown():
  masks = [(0, 0, 0), (0, 1, 1), (1, 0, 0)]
  images, labels = predictions.first_examples(batches(*masks))
  assert (len(images), labels.tolist()) == (3, [1, 1, 1])
  # No more batches are read than are drawn.
  endless = batches(*[(1,) * 20] * 2, "never read")
  images, labels = predictions.first_examples(endless)
  assert len(images) == len(labels) == 24
