"""Scale-DiT in the model of digits, at twice and four times its side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import generation
from generation import methods, upscaling
from generation.methods.scale_dit import small_image
from models.attends import Layout
from models.attends.scale_dit import scale_dit_mask
from tools.generation_subject import cosine_to_dense

TITLE = "Scale-DiT (2510.16325): larger images by windows and a small image"
SUBJECT = "digits"
TEXT = """
A model of small images makes large ones: tokens see a window of the trained
size and, of the small image made before, what lies below and beside their
window. The paper trains a LoRA for that; here nothing is trained, so that the
rows ask what the masks do alone, and how much of the small image an untrained
model takes up. "Enlarged" begins with the small image, enlarged and made noisy,
and has the last 0.7 of the steps; the others begin with noise. `density` is the
share of the scores, of the large image's tokens among themselves; the small
image's are beyond it. `cosine` is with full attention from the same noise, and
`like small` with the small image, enlarged. Quality is seen at the trained
size.
"""
COLUMNS = (
  ("density", ".3f"),
  ("cosine", ".3f"),
  ("like_small", ".3f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
)
_STEPS = {"full": 20, "test": 2}
_ROWS = {"full": 32, "test": 4}
_STRENGTH = 0.7
# As wide as the grid of 4 x 4 tokens that the model was trained with.
_WINDOW = 4


def rows(variant):
  """Full attention, windows, windows with a small image, naive controls."""
  dense = {"method": "full"}
  with_low = {"low": True}
  found = [
    *(
      (f"{name}, {factor} times", {**options, "factor": factor})
      for factor in (2, 4)
      for name, options in (
        ("dense", dense),
        ("windows", {}),
        ("windows and small image", with_low),
        ("random tokens, as many", {"method": "naive"}),
      )
    ),
    *(
      (f"{name}, enlarged 2 times", {**options, "factor": 2, "enlarged": True})
      for name, options in (
        ("dense", dense),
        ("windows", {}),
        ("windows and small image", with_low),
        ("random tokens, as many", {"method": "naive"}),
        ("a band, as many", {"method": "naive", "kind": "band"}),
      )
    ),
  ]
  return found if variant == "full" else [found[i] for i in (0, 2, 3, 10)]


# Rows come one after the other, each with all seeds.
@functools.lru_cache(maxsize=3)
def _small(subject, seed, variant):
  """Images of the trained size."""
  labels = subject.conditions(_ROWS[variant])["label"]
  small = subject.draw(labels=labels, seed=seed, steps=_STEPS[variant])
  return jnp.asarray(small)


@functools.lru_cache(maxsize=9)
def _dense(subject, seed, variant, factor, enlarged):
  """Larger images by full attention."""
  where = subject, seed, variant, factor, enlarged
  return _draw(*where, "full", {})


def _draw(subject, seed, variant, factor, enlarged, method, options, low=False):
  """Larger images by a method, with a small image to guide it if `low`."""
  model, path = subject.model, subject.path
  condition = {
    "label": subject.conditions(_ROWS[variant])["label"],
    "guidance": 1.5,
  }
  small = _small(subject, seed, variant)
  shape = upscaling.sides_times(model.sample_shape, factor)
  x = jax.random.normal(
    jax.random.key(seed), (len(small), *shape, model.channels)
  )
  times = path.times(_STEPS[variant])
  if enlarged:
    times = upscaling.last_times(path, _STEPS[variant], _STRENGTH)
    x = upscaling.noisy(small, x, path, times[0], method="cubic")
  changed = methods.create(method, model, len(times) - 1, options)
  denoisers = [
    generation.create_denoiser(each, subject.variables, **condition)
    for each in changed.models
  ]
  state = None
  if low:
    state = small_image(model, subject.variables, small, **options, **condition)
  made = generation.sample(
    denoisers, x, path, times=times, which=changed.which, state=state
  )
  return np.asarray(made)


def measure(subject, name, options, seed, variant):
  """Figures of larger images; see COLUMNS."""
  factor, enlarged = options["factor"], options.get("enlarged", False)
  method, low = options.get("method", "scale_dit"), options.get("low", False)
  trained = subject.model.sample_shape
  layout = Layout(
    subject.model.token_grid(upscaling.sides_times(trained, factor)),
    subject.model.token_grid(trained),
  )
  tokens = layout.places
  # Of the windows, also where the small image's tokens come on top.
  seen = scale_dit_mask(layout, _WINDOW, 0, "high").count(tokens, tokens)
  density = float(np.mean(seen)) / tokens
  where = subject, seed, variant, factor, enlarged
  with jax.set_mesh(subject.mesh):
    dense = _dense(*where)
    match method:
      case "full":
        samples, density = dense, 1.0
      case "naive":
        kind = options.get("kind", "random")
        naive = {"kind": kind, "density": density, "seed": seed}
        samples = _draw(*where, "naive", naive)
      case _:
        windows = {"window": _WINDOW, "scale": factor if low else 0}
        samples = _draw(*where, "scale_dit", windows, low)
    small = _small(subject, seed, variant)
    large = np.asarray(jax.image.resize(small, dense.shape, "linear"))
  return {
    "density": density,
    "cosine": cosine_to_dense(samples, dense),
    "like_small": cosine_to_dense(samples, large),
    **subject.quality(samples, subject.conditions(_ROWS[variant])["label"]),
  }
