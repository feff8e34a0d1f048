"""Guide-and-Rescale on the model of digits: from one class to another."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import generation
from generation import guide_and_rescale
from generation.guide_and_rescale import Preset
from tools.generation_subject import cosine_to_dense

TITLE = "Guide-and-Rescale (2409.01322): editing by maps that are kept"
SUBJECT = "digits"
TEXT = """
Digits that the model made are taken back to noise with their class, and made
anew with another, five further. `accuracy` and `frechet` are those of the new
class; `kept` is the cosine of the ink with the digit before, and `spread` the
deviation of pixels from it. The paper claims more of both than guidance alone.
Scales, shares of steps and bounds are the published ones, which were chosen for
maps of 64 x 64 places; here there are 4 x 4, so gradients are larger against
guidance and the upper bound acts. `norm` rows hold the ratio of norms at a
fixed value. Controls: guidance from the inverted noise without guiders, noise
added to a part of the way and taken off with the new class, and an edit to the
class that there is, which should change little.
"""
COLUMNS = (
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
  ("kept", ".3f"),
  ("spread", ".3f"),
)
_STEPS = {"full": 25, "test": 3}
_ROWS = {"full": 100, "test": 4}
_GUIDANCE = 3.0
_CLASSES = 10


def rows(variant):
  """The paper's two presets, their parts, and controls."""
  found = [
    ("made again with its own class", {"edit": "none"}),
    ("guidance alone", {"active": 0.0}),
    ("noise to 0.6 of the way, new class", {"edit": "noise", "start": 0.6}),
    ("noise to 0.8 of the way, new class", {"edit": "noise", "start": 0.8}),
    ("local", {}),
    ("style", {"preset": "style"}),
    ("local, not rescaled", {"bounds": (0.0, math.inf)}),
    ("local, norm 0.33", {"bounds": (0.33, 0.33)}),
    ("local, norm 1", {"bounds": (1.0, 1.0)}),
    ("maps alone, norm 1", {"only": 0, "bounds": (1.0, 1.0)}),
    ("features alone, norm 1", {"only": 1, "bounds": (1.0, 1.0)}),
    ("local, to the class it has", {"further": 0}),
  ]
  return found if variant == "full" else [found[i] for i in (0, 2, 4)]


def measure(subject, name, options, seed, variant):
  """Figures of edited digits; see COLUMNS."""
  del name
  steps, count = _STEPS[variant], _ROWS[variant]
  source = subject.conditions(count)["label"]
  target = (source + options.get("further", 5)) % _CLASSES
  images = subject.draw(labels=source, seed=seed, steps=steps)
  with jax.set_mesh(subject.mesh):
    edited = np.asarray(
      edit(subject, jnp.asarray(images), source, target, steps, seed, **options)
    )
  wanted = source if options.get("edit") == "none" else target
  quality = subject.quality(edited, wanted)
  return {
    "accuracy": quality["accuracy"],
    "frechet": quality["frechet"],
    "kept": cosine_to_dense(edited, images),
    "spread": float(np.sqrt(np.square(edited - images).mean())),
  }


def edit(
  subject,
  images,
  source,
  target,
  steps,
  seed,
  *,
  edit="guide",
  preset="local",
  start=1.0,
  active=None,
  bounds=None,
  only=None,
  further=5,
):
  """Edits images by what a row says."""
  del further
  known = subject.model, subject.variables
  if edit == "none":
    denoise = generation.create_denoiser(*known, label=source)
    latents = generation.invert(denoise, images, subject.path, steps=steps)
    return generation.sample(denoise, latents[0], subject.path, steps=steps)
  if edit == "noise":
    times = subject.path.times(steps)
    times = times[times <= start * times[0]]
    noise = jax.random.normal(jax.random.key(seed), images.shape)
    return generation.sample(
      generation.create_denoiser(*known, label=target, guidance=_GUIDANCE),
      subject.path.add_noise(images, noise, float(times[0])),
      subject.path,
      times=times,
    )
  chosen = guide_and_rescale.presets(subject.model.depth)[preset]
  guiders = chosen.guiders if only is None else (chosen.guiders[only],)
  return guide_and_rescale.edit(
    *known,
    images,
    subject.path,
    source={"label": source},
    target={"label": target},
    preset=Preset(
      guiders,
      chosen.active if active is None else active,
      chosen.bounds if bounds is None else bounds,
    ),
    steps=steps,
    guidance=_GUIDANCE,
  )[0]
