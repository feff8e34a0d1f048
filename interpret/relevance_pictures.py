"""Pictures of relevance maps beside their images."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray


def maps_of_images(images: Array, maps: Mapping[str, Array]) -> Any:
  """Draws images in a column, and to the right of it their maps.

  Signed maps are red for and blue against the class, white for 0, and each has
  its own range; maps without negative values go from black to white.

  Args:
    images: [batch, height, width, channels] of 1 or 3 channels, from 0 to 1.
    maps: by their titles, [batch, height, width] or with channels, which are
      summed.

  Returns:
    A matplotlib `Figure`.

  Raises:
    ValueError: if the maps are not of as many images.
  """
  from matplotlib.figure import Figure

  images = np.asarray(images, np.float32)
  rows, columns = len(images), 1 + len(maps)
  figure = Figure(figsize=(2 * columns, 2 * rows), layout="constrained")
  panels = figure.subplots(rows, columns, squeeze=False)
  for panel in panels.flat:
    panel.axis("off")
  for panel, image in zip(panels[:, 0], images, strict=True):
    panel.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
  for column, (title, values) in enumerate(maps.items(), 1):
    values = np.asarray(values, np.float32)
    values = values.sum(-1) if values.ndim == 4 else values
    if len(values) != rows:
      raise ValueError(
        f"maps[{title!r}] has {len(values)} maps; there are {rows} images"
      )
    panels[0, column].set_title(title)
    for panel, one in zip(panels[:, column], values, strict=True):
      panel.imshow(one, **_colours(one))
  return figure


def _colours(one):
  if (one >= 0).all():
    return {"cmap": "gray", "vmin": 0}
  limit = float(np.abs(one).max())
  return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
