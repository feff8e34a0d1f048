"""Pictures of relevance show what they were given; the page's code runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from interpret import relevance_pictures


def test_panels_hold_images_and_maps():
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(2, 4, 5, 1)).astype(np.float32)
  signed = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
  positive = rng.uniform(size=(2, 4, 5)).astype(np.float32)
  figure = relevance_pictures.maps_of_images(
    images, {"relevance": signed, "saliency": positive}
  )
  panels = np.reshape(figure.axes, (2, 3))
  shown = [[panel.images[0] for panel in row] for row in panels]
  np.testing.assert_allclose(shown[1][0].get_array(), images[1, ..., 0])
  np.testing.assert_allclose(shown[1][1].get_array(), signed[1].sum(-1))
  np.testing.assert_allclose(shown[0][2].get_array(), positive[0])
  low, high = shown[0][1].get_clim()
  assert low == -high
  assert high == pytest.approx(np.abs(signed[0].sum(-1)).max())
  titles = [panel.get_title() for panel in panels[0]]
  assert titles == ["", "relevance", "saliency"]


def test_maps_of_other_images():
  with pytest.raises(ValueError, match=r"maps\['a'\] has 3 maps; there are 2"):
    relevance_pictures.maps_of_images(
      np.zeros((2, 4, 4, 3)), {"a": np.zeros((3, 4, 4))}
    )


def test_the_code_of_the_page():
  page = Path(__file__).parents[2] / "docs" / "relevance.md"
  (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
  names = {}
  exec(code, names)
  assert names["relevances"][0].shape == (2, 16, 16, 3)
  assert names["areas"].shape == (2, 16, 16)
  assert len(names["figure"].axes) == 6
