"""Draws discs, squares, triangles and rings, in two kinds of colours."""

import colorsys

import numpy as np

from input_pipeline.stream import Example

CLASSES = ("disc", "square", "triangle", "ring")
DOMAINS = ("source", "target")
# Of the side of the image: the least and the largest side of a shape.
_SIDES = (0.16, 0.4)
# How often a place is looked for before a scene stays with fewer objects.
_TRIES = 20


def scene(
  rng: np.random.Generator, domain: str, size: int, most: int
) -> Example:
  """Makes a scene of 1 to `most` shapes that do not touch.

  "source" has bright colours of one hue each before a dark, smooth background;
  "target" has striped shapes of pale colours before a background of waves and
  noise.

  Args:
    rng: of all that is drawn.
    domain: one of DOMAINS.
    size: side of the image in pixels.
    most: objects that there may be.

  Returns:
    image uint8 [size, size, 3]; boxes float32 [most, 4] of the first row and
    column of a shape and of those behind its last ones; labels int32 [most],
    which of CLASSES, -1 where there is no object.
  """
  image = _background(rng, domain, size)
  boxes = np.zeros((most, 4), np.float32)
  labels = np.full(most, -1, np.int32)
  taken = np.zeros((size, size), bool)
  for n in range(rng.integers(1, most + 1)):
    for _ in range(_TRIES):
      side = int(rng.integers(*(int(share * size) for share in _SIDES)))
      top, left = rng.integers(0, size - side + 1, 2)
      if not taken[top : top + side, left : left + side].any():
        break
    else:
      break
    labels[n] = rng.integers(len(CLASSES))
    inside = np.zeros((size, size), bool)
    inside[top : top + side, left : left + side] = _shape(labels[n], side)
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    boxes[n] = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    taken[top : top + side, left : left + side] = True
    image = np.where(inside[..., None], _paint(rng, domain, size), image)
  image = np.clip(np.round(255 * image), 0, 255).astype(np.uint8)
  return {"image": image, "boxes": boxes, "labels": labels}


def _shape(label: int, side: int) -> np.ndarray:
  """Which pixels of a square [side, side] the shape has."""
  # Centres of pixels, from -1 to 1.
  y, x = (2 * (np.mgrid[:side, :side] + 0.5) / side) - 1
  radius = np.hypot(y, x)
  match CLASSES[label]:
    case "disc":
      return radius <= 1
    case "square":
      return np.ones((side, side), bool)
    case "triangle":
      return np.abs(x) <= (y + 1) / 2
    case _:
      return (radius <= 1) & (radius >= 0.55)


def _background(rng, domain: str, size: int) -> np.ndarray:
  """float64 [size, size, 3], about 0 to 1."""
  y, x = np.mgrid[:size, :size] / size
  if domain == "source":
    slope = rng.uniform(-0.1, 0.1, (2, 3))
    shade = rng.uniform(0.05, 0.2, 3)
    return shade + y[..., None] * slope[0] + x[..., None] * slope[1]
  waves = 0.0
  for _ in range(3):
    frequency, phase = rng.uniform(2, 9, 2), rng.uniform(0, 2 * np.pi)
    angle = 2 * np.pi * (frequency[0] * y + frequency[1] * x) + phase
    waves = waves + np.sin(angle)[..., None] * rng.uniform(0.02, 0.07, 3)
  noise = rng.normal(0, 0.04, (size, size, 3))
  return rng.uniform(0.4, 0.6, 3) + waves + noise


def _paint(rng, domain: str, size: int) -> np.ndarray:
  """What a shape is cut out of, [size, size, 3]."""
  hue = rng.uniform()
  if domain == "source":
    color = colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.7, 1))
    return np.broadcast_to(color, (size, size, 3))
  color = colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.9))
  y, x = np.mgrid[:size, :size]
  stripes = np.sin(rng.uniform(0.6, 1.4) * (y + rng.choice([-1, 1]) * x))
  return np.array(color) + 0.12 * stripes[..., None]
