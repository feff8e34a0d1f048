"""C-Upscale on the model of digits, at twice their height and width."""

import jax
import jax.numpy as jnp
import numpy as np

import generation
from generation import c_upscale
from tools.generation_subject import shrunk

TITLE = "C-Upscale (2505.16976): larger images in tiles, with three priors"
SUBJECT = "digits"
TEXT = """
Digits that the model made, 8 x 8, become 16 x 16. `accuracy` and `frechet` are
of the result shrunk to 8 x 8; `low` is how far that is from the small image,
pixel by pixel; `detail` the share of the energy above what 8 x 8 can hold; and
`repetition` how often a corner tile by itself is taken for the digit that the
whole shall be. The paper expects tiles with one prompt for all to repeat the
subject, and each prior to help. Formulas are ours, since the paper has no code
that could be read. Prompts of tiles are the classes that a classifier of ours
sees in them. Controls: the image enlarged and no more, the whole canvas at once
instead of tiles, and a canvas from noise alone.
"""
COLUMNS = (
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
  ("low", ".3f"),
  ("detail", ".3f"),
  ("repetition", ".1%"),
)
_STEPS = {"full": 25, "test": 8}
_ROWS = {"full": 100, "test": 4}
_GUIDANCE = 1.5
_START = 0.45
_NOTHING = {"structure": 0.0, "gate": False}


def rows(variant):
  """All priors, each alone, none, and controls."""
  found = [
    ("enlarged only", {"by": "resize"}),
    ("from noise, whole canvas", {"by": "noise"}),
    ("whole canvas at once", {"by": "canvas"}),
    ("tiles, no prior", _NOTHING),
    ("structure", {"gate": False}),
    ("gate", {"structure": 0.0}),
    ("mix 0.5", {**_NOTHING, "mix": 0.5}),
    ("structure and gate", {}),
    ("all three", {"mix": 0.5}),
    ("all three from 0.8 of the way", {"mix": 0.5, "start": 0.8}),
    ("tiles, no prior, from 0.8", {**_NOTHING, "start": 0.8}),
  ]
  return found if variant == "full" else [found[i] for i in (0, 3, 8)]


def measure(subject, name, options, seed, variant):
  """Figures of larger digits; see COLUMNS."""
  del name
  steps, count = _STEPS[variant], _ROWS[variant]
  labels = subject.conditions(count)["label"]
  small = subject.draw(labels=labels, seed=seed, steps=steps)
  with jax.set_mesh(subject.mesh):
    large = np.asarray(
      enlarge(subject, jnp.asarray(small), labels, steps, seed, **options)
    )
  quality = subject.quality(large, labels)
  height, width = small.shape[1:3]
  corners = [
    large[:, rows, columns]
    for rows in (slice(height), slice(-height, None))
    for columns in (slice(width), slice(-width, None))
  ]
  taken = [subject.quality(c, labels)["accuracy"] for c in corners]
  low = np.asarray(c_upscale.low_pass(jnp.asarray(large), 0.5))
  return {
    "accuracy": quality["accuracy"],
    "frechet": quality["frechet"],
    "low": float(
      np.sqrt(np.square(shrunk(large, small.shape[1:-1]) - small).mean())
    ),
    "detail": float(np.square(large - low).sum() / np.square(large).sum()),
    "repetition": float(np.mean(taken)),
  }


def enlarge(
  subject, small, labels, steps, seed, *, by="tiles", mix=0.0, **options
):
  """Enlarges images by what a row says."""
  shape = (len(small), *(2 * n for n in small.shape[1:3]), small.shape[-1])
  resized = jax.image.resize(small, shape, "cubic")
  if by == "resize":
    return resized
  known = subject.model, subject.variables
  if by == "tiles":
    return c_upscale.upscale(
      *known,
      small,
      subject.path,
      condition={"label": labels},
      key=jax.random.key(seed),
      steps=steps,
      guidance=_GUIDANCE,
      mix=mix,
      describe=classes_of(subject) if mix else None,
      **options,
    )
  times = subject.path.times(steps)
  noise = jax.random.normal(jax.random.key(seed), shape)
  if by == "canvas":
    times = times[times <= _START * times[0]]
    noise = subject.path.add_noise(resized, noise, float(times[0]))
  return generation.sample(
    generation.create_denoiser(*known, label=labels, guidance=_GUIDANCE),
    noise,
    subject.path,
    times=times,
  )


def classes_of(subject):
  """Describes tiles [tiles, batch, ...] by the classes that are seen there."""

  def describe(tiles):
    flat = tiles.reshape(-1, *tiles.shape[2:])
    pixels = np.asarray(subject._decode(flat))
    logits = subject._quality.features(pixels)[1]
    return {"label": logits.argmax(-1).reshape(tiles.shape[:2])}

  return describe
