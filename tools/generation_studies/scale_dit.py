"""Scale-DiT in the model of digits, at twice and four times its side."""

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
_ROWS = {"full": 100, "test": 2}
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


def measure(subject, name, options, seed, variant):
  """Figures of larger images; see COLUMNS."""
  factor, enlarged = options["factor"], options.get("enlarged", False)
  method, low = options.get("method", "scale_dit"), options.get("low", False)
  steps, count = _STEPS[variant], _ROWS[variant]
  model, path = subject.model, subject.path
  labels = subject.conditions(count)["label"]
  condition = {"label": labels, "guidance": 1.5}
  small = jnp.asarray(subject.draw(labels=labels, seed=seed, steps=steps))
  shape = upscaling.sides_times(model.sample_shape, factor)
  layout = Layout(model.token_grid(shape), model.token_grid(model.sample_shape))
  tokens = layout.places
  # Of the windows, also where the small image's tokens come on top.
  seen = scale_dit_mask(layout, _WINDOW, 0, "high").count(tokens, tokens)
  density = float(np.mean(seen)) / tokens
  noise = jax.random.normal(
    jax.random.key(seed), (count, *shape, model.channels)
  )
  times = path.times(steps)
  start = noise
  if enlarged:
    times = upscaling.last_times(path, steps, _STRENGTH)
    start = upscaling.noisy(small, noise, path, times[0], method="cubic")

  def draw(method, options, state=None):
    changed = methods.create(method, model, len(times) - 1, options)
    denoisers = [
      generation.create_denoiser(each, subject.variables, **condition)
      for each in changed.models
    ]
    made = generation.sample(
      denoisers, start, path, times=times, which=changed.which, state=state
    )
    return np.asarray(made)

  with jax.set_mesh(subject.mesh):
    match method:
      case "full":
        samples, density = draw("full", {}), 1.0
      case "naive":
        kind = options.get("kind", "random")
        samples = draw(
          "naive", {"kind": kind, "density": density, "seed": seed}
        )
      case _:
        windows = {"window": _WINDOW, "scale": factor if low else 0}
        state = None
        if low:
          state = small_image(
            model, subject.variables, small, **windows, **condition
          )
        samples = draw("scale_dit", windows, state)
    dense = samples if method == "full" else draw("full", {})
  large = np.asarray(jax.image.resize(small, noise.shape, "linear"))
  return {
    "density": density,
    "cosine": cosine_to_dense(samples, dense),
    "like_small": cosine_to_dense(samples, large),
    **subject.quality(samples, labels),
  }
