"""Re-ttention in the model of moving digits."""

import functools

import numpy as np

from generation import methods
from models.attends import Layout
from models.attends.reshaped_window import window
from tools.generation_subject import cosine_to_dense

TITLE = "Re-ttention (2505.22918): a window corrected by an earlier full step"
SUBJECT = "moving_digits"
TEXT = """
Videos of the trained size, 20 steps, by the paper's schedule for so many: 5
full, then one in 5. A query sees one place of each frame of 4 x 4 tokens, or
three in their row-major order; the steps between add what the last full one
says of the others. Controls: the window alone at the same steps, which needs as
many products, and full attention with as many steps as Re-ttention has full
ones. The paper has 93.8 and 96.9 percent left out, and claims samples close to
those of full attention; it reports a small gain of the ramp. `density` is the
share of the scores at all steps together, `cosine` is with the dense samples
from the same noise.
"""
COLUMNS = (
  ("density", ".3f"),
  ("cosine", ".3f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
  ("consistency", ".3f"),
)
_STEPS = {"full": 20, "test": 3}
_ROWS = {"full": 96, "test": 4}
# One of 16 places, 93.8 percent left out, and three of them.
_ONE, _THREE = {"keep": 0.0625}, {"keep": 0.125}


def rows(variant):
  """Dense, Re-ttention, and controls."""
  steps = _STEPS[variant]
  options = {"full_steps": steps // 4, "period": 5}
  late = {**options, "full_steps": 1}
  found = [
    ("dense", {}),
    ("dense, 8 steps", {"steps": min(8, steps)}),
    ("one place", {**options, **_ONE}),
    ("one place, window alone", {**options, **_ONE, "kind": "window"}),
    ("one place, no ramp", {**options, **_ONE, "ramp": 0.0}),
    ("one place, ratio at most 1", {**options, **_ONE, "most": 1.0}),
    ("three places", {**options, **_THREE}),
    ("three places, window alone", {**options, **_THREE, "kind": "window"}),
    ("one place, one step full at first", {**late, **_ONE}),
    (
      "one place, one step full, window alone",
      {**late, **_ONE, "kind": "window"},
    ),
  ]
  return found if variant == "full" else [found[i] for i in (0, 1, 3, 2)]


def measure(subject, name, options, seed, variant):
  """Figures of samples by Re-ttention; see COLUMNS."""
  del name
  steps = _STEPS[variant]
  labels = subject.conditions(_ROWS[variant])["label"]
  draw = functools.partial(subject.draw, labels=labels, seed=seed)
  dense = draw(steps=steps)
  density = 1.0
  if "keep" in options:
    samples = draw("re_ttention", options, steps=steps)
    grid = subject.model.token_grid(subject.model.sample_shape)
    layout = Layout(grid, grid)
    seen = window(layout, options["keep"]).count(layout.places, layout.places)
    method = methods.create("re_ttention", subject.model, steps, options)
    sparse = np.mean(np.equal(method.which, 2))
    density = float(1 - sparse * (1 - np.mean(seen) / layout.places))
  else:
    few = options.get("steps", steps)
    samples, density = draw(steps=few), few / steps
  return {
    "density": density,
    "cosine": cosine_to_dense(samples, dense),
    **subject.quality(samples, labels),
  }
