"""Draws the pictures of docs/diffusion.md, of a trained model of digits.

  python -m tools.render_generation runs/digits docs/images

Rows are those of the studies, `tools.generation_studies`, and columns classes.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import storage
from tasks import image_grids
from tools import generation_subject
from tools.generation_studies import c_upscale, guide_and_rescale

_CLASSES, _STEPS, _SEED = 10, 25, 0
# Rows of each study, from the second on in the picture.
EDITS = (
  "guidance alone",
  "maps alone, norm 1",
  "local, norm 1",
  "local",
  "style",
)
LARGER = (
  "enlarged only",
  "whole canvas at once",
  "tiles, no prior",
  "structure",
  "all three",
)


def edits(subject: generation_subject.Subject) -> list[np.ndarray]:
  """Digits, then what becomes of each as a row of the study edits it."""
  source = np.arange(_CLASSES)
  target = (source + 5) % _CLASSES
  images = subject.draw(labels=source, seed=_SEED, steps=_STEPS)
  rows = dict(guide_and_rescale.rows("full"))
  given = jnp.asarray(images), source, target, _STEPS, _SEED
  return [
    images,
    *(guide_and_rescale.edit(subject, *given, **rows[name]) for name in EDITS),
  ]


def larger(subject: generation_subject.Subject) -> list[np.ndarray]:
  """Digits as a row of the study enlarges them."""
  labels = np.arange(_CLASSES)
  images = subject.draw(labels=labels, seed=_SEED, steps=_STEPS)
  rows = dict(c_upscale.rows("full"))
  given = jnp.asarray(images), labels, _STEPS, _SEED
  return [c_upscale.enlarge(subject, *given, **rows[n]) for n in LARGER]


def picture(rows: list[np.ndarray]) -> bytes:
  """A PNG with a row of images for each of `rows`, data about -1 to 1."""
  images = np.stack([np.asarray(row) for row in rows])
  pixels = np.round(127.5 * (1 + np.clip(images, -1, 1))).astype(np.uint8)
  return image_grids.encode([image_grids.grid(pixels)], ".png")


def main() -> None:
  """Writes both pictures."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("weights", help="workdir of a run of digits")
  parser.add_argument("folder", help="where the pictures are written")
  options = parser.parse_args()
  subject = generation_subject.Subject(storage.path(options.weights))
  folder = storage.path(options.folder)
  for name, rows in (
    ("guide_and_rescale", edits),
    ("c_upscale", larger),
  ):
    with jax.set_mesh(subject.mesh):
      storage.write_whole(folder / f"{name}.png", picture(rows(subject)))


if __name__ == "__main__":
  main()
