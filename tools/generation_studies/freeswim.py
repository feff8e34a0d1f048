"""FreeSwim in the model of moving digits, at twice its height and width."""

import jax
import jax.numpy as jnp
import numpy as np

import generation
from generation import methods, upscaling
from models.attends import Layout
from models.attends.inward_window import window_mask
from tools.generation_subject import cosine_to_dense

TITLE = "FreeSwim (2511.14712): larger videos by windows of the trained size"
SUBJECT = "moving_digits"
TEXT = """
Videos of the trained size are enlarged to twice the height and width, made
noisy, and denoised by the last 0.7 of the steps. The paper expects full
attention to blur and windows alone to repeat what is in them; the
cross-attention of full attention shall cure that, also if it is computed each
second step only. Rows leave out one part each. `attention` is the share of the
scores of self-attention that are computed, both branches together, against full
attention alone; `cosine` is with the samples of full attention from the same
noise. Quality is seen at the trained size. Without a temperature everything is
at its trained scale, as in the first row.
"""
COLUMNS = (
  ("attention", ".3f"),
  ("cosine", ".3f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
  ("consistency", ".3f"),
)
_STEPS = {"full": 20, "test": 3}
_ROWS = {"full": 32, "test": 2}
_STRENGTH = 0.7


def rows(variant):
  """Dense, FreeSwim, it without each of its parts, and naive windows."""
  found = [
    ("dense", {"method": "full"}),
    ("enlarged only", {"method": None}),
    ("FreeSwim, both branches at each step", {"period": 1}),
    ("FreeSwim, full attention each second step", {"period": 2}),
    ("each fifth step", {"period": 5}),
    ("windows alone", {"override": False}),
    ("windows cut at the borders", {"period": 2, "inward": False}),
    ("without the temperature", {"period": 2, "temperature": False}),
    ("random tokens, as many as windows", {"method": "naive"}),
    ("a band, as many", {"method": "naive", "kind": "band"}),
  ]
  return found if variant == "full" else [found[i] for i in (0, 3, 5, 8)]


def measure(subject, name, options, seed, variant):
  """Figures of larger samples; see COLUMNS."""
  options = dict(options)
  method = options.pop("method", "freeswim")
  steps, count = _STEPS[variant], _ROWS[variant]
  labels = subject.conditions(count)["label"]
  small = subject.draw(labels=labels, seed=seed, steps=steps)
  shape = upscaling.sides_times(subject.model.sample_shape, 2)
  layout = Layout(
    subject.model.token_grid(shape),
    subject.model.token_grid(subject.model.sample_shape),
  )
  tokens = layout.places
  inward = options.get("inward", True)
  seen = window_mask(layout, inward).count(tokens, tokens)
  share = float(np.mean(seen)) / tokens
  if method == "naive":
    options = {"density": share, "seed": seed, **options}
  noise = jax.random.normal(
    jax.random.key(seed), (count, *shape, subject.model.channels)
  )
  times = upscaling.last_times(subject.path, steps, _STRENGTH)

  def draw(method, options):
    x = upscaling.noisy(jnp.asarray(small), noise, subject.path, times[0])
    changed = methods.create(method, subject.model, len(times) - 1, options)
    denoisers = [
      generation.create_denoiser(
        model, subject.variables, label=labels, guidance=1.5
      )
      for model in changed.models
    ]
    made = generation.sample(
      denoisers, x, subject.path, times=times, which=changed.which
    )
    return np.asarray(made), changed

  with jax.set_mesh(subject.mesh):
    if method is None:
      enlarged = jax.image.resize(small, noise.shape, "linear")
      samples, attention = np.asarray(enlarged), 0.0
    else:
      samples, changed = draw(method, options)
      attention = 1.0 if method == "full" else share
      if len(changed.models) > 1 and method == "freeswim":
        # The first of them runs full attention beside the windows.
        attention += 1 - float(np.mean(changed.which))
    dense = samples if method == "full" else draw("full", {})[0]
  return {
    "attention": attention,
    "cosine": cosine_to_dense(samples, dense),
    **subject.quality(samples, labels),
  }
