"""Radial Attention's masks in the model of moving digits."""

import functools

import numpy as np

from models.attends import Layout
from models.attends.naive import naive_mask
from models.attends.radial import radial_mask
from tools.generation_subject import cosine_to_dense

TITLE = "Radial Attention (2506.19852): fewer places, the farther two frames"
SUBJECT = "moving_digits"
TEXT = """
Videos of the trained size, by its masks instead of full attention. The paper
has dense steps first, and expects samples close to those of full attention;
with such short frames the decay of 0.2 that it uses for Wan 2.1 leaves little
of a band. Controls see as many blocks at the same steps: blocks drawn at
random, and the nearest in the row of all tokens. `density` is the share of the
scores at all steps and layers together, `cosine` is with the dense samples from
the same noise. Blocks have 2 x 2 scores and a frame 16 tokens, ours.
"""
COLUMNS = (
  ("density", ".3f"),
  ("cosine", ".3f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
  ("consistency", ".3f"),
)
_BLOCK = {"block_size": 2}
_RADIAL = {**_BLOCK, "dense_width": 2}
_STEPS = {"full": 20, "test": 2}
_ROWS = {"full": 32, "test": 4}


def rows(variant):
  """Dense, radial masks, and controls of the density of decay 0.2."""
  first = {"dense_steps": _STEPS[variant] // 4}
  found = [
    ("dense", {}),
    ("radial, decay 1", {**_RADIAL, "decay": 1.0}),
    ("radial, decay 0.2", {**_RADIAL, "decay": 0.2}),
    ("random blocks, as many", {**_BLOCK, "kind": "random"}),
    ("band, as wide", {**_BLOCK, "kind": "band"}),
    (
      "radial, decay 0.2, a quarter of the steps dense",
      {**_RADIAL, "decay": 0.2, **first},
    ),
    (
      "random blocks, a quarter dense",
      {**_BLOCK, "kind": "random", **first},
    ),
    ("band, a quarter dense", {**_BLOCK, "kind": "band", **first}),
    (
      "radial, decay 0.2, without the sink",
      {**_RADIAL, "decay": 0.2, "sink": False},
    ),
  ]
  return found if variant == "full" else [found[i] for i in (0, 3, 4, 2)]


# Rows come one after the other, each with all seeds.
@functools.lru_cache(maxsize=3)
def _dense(subject, seed, variant):
  """Samples by full attention."""
  return _draw(subject, seed, variant, "full", {})


def _draw(subject, seed, variant, method, options):
  return subject.draw(
    method,
    options,
    labels=subject.conditions(_ROWS[variant])["label"],
    seed=seed,
    steps=_STEPS[variant],
  )


def measure(subject, name, options, seed, variant):
  """Figures of samples by a mask; see COLUMNS."""
  steps = _STEPS[variant]
  labels = subject.conditions(_ROWS[variant])["label"]
  grid = subject.model.token_grid(subject.model.sample_shape)
  layout = Layout(grid, grid)
  tokens = layout.places

  def share(mask):
    return float(np.mean(mask.count(tokens, tokens))) / tokens

  method, density = "full", 1.0
  if "decay" in options:
    method = "radial"
    known = {"sink": True, "decay": 1.0, **options}
    known.pop("dense_steps", None)
    density = share(radial_mask(layout, **known))
  elif "kind" in options:
    method = "naive"
    like = radial_mask(layout, 0.2, True, 2, 2)
    options = {**options, "density": share(like), "seed": seed}
    mask = naive_mask(layout, options["kind"], options["density"], 2, seed)
    density = share(mask)
  dense_steps = options.get("dense_steps", 0)
  dense = _dense(subject, seed, variant)
  samples = dense
  if method != "full":
    samples = _draw(subject, seed, variant, method, options)
  return {
    "density": (dense_steps + (steps - dense_steps) * density) / steps,
    "cosine": cosine_to_dense(samples, dense),
    **subject.quality(samples, labels),
  }
