"""FreeSwim in the model of moving digits, at twice its height and width."""

import functools

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
_ROWS = {"full": 12, "test": 4}
_STRENGTH = 0.7


def rows(variant):
  """Dense, FreeSwim, it without each of its parts, and naive windows."""
  found = [
    ("dense", {"method": "full"}),
    ("enlarged only", {"method": None}),
    ("FreeSwim, both branches at each step", {"period": 1}),
    ("FreeSwim, full attention each second step", {"period": 2}),
    ("windows alone", {"override": False}),
    ("windows cut at the borders", {"period": 2, "inward": False}),
    ("without the temperature", {"period": 2, "scale_by": "constant"}),
    ("random tokens, as many as windows", {"method": "naive"}),
    ("a band, as many", {"method": "naive", "kind": "band"}),
  ]
  return found if variant == "full" else [found[i] for i in (0, 4, 7, 3)]


def _noise(subject, seed, variant):
  shape = upscaling.sides_times(subject.model.sample_shape, 2)
  return jax.random.normal(
    jax.random.key(seed), (_ROWS[variant], *shape, subject.model.channels)
  )


# Rows come one after the other, each with all seeds.
@functools.lru_cache(maxsize=3)
def _small(subject, seed, variant):
  """Samples of the trained size."""
  labels = subject.conditions(_ROWS[variant])["label"]
  return subject.draw(labels=labels, seed=seed, steps=_STEPS[variant])


@functools.lru_cache(maxsize=3)
def _dense(subject, seed, variant):
  """Larger samples by full attention."""
  return _draw(subject, seed, variant, "full", {})[0]


def _draw(subject, seed, variant, method, options):
  """Larger samples, and the steps that run the method's second model."""
  times = upscaling.last_times(subject.path, _STEPS[variant], _STRENGTH)
  small = jnp.asarray(_small(subject, seed, variant))
  noise = _noise(subject, seed, variant)
  x = upscaling.noisy(small, noise, subject.path, times[0])
  changed = methods.create(method, subject.model, len(times) - 1, options)
  denoisers = [
    generation.create_denoiser(
      model,
      subject.variables,
      label=subject.conditions(_ROWS[variant])["label"],
      guidance=1.5,
    )
    for model in changed.models
  ]
  made = generation.sample(
    denoisers, x, subject.path, times=times, which=changed.which
  )
  return np.asarray(made), changed.which


def measure(subject, name, options, seed, variant):
  """Figures of larger samples; see COLUMNS."""
  options = dict(options)
  method = options.pop("method", "freeswim")
  trained = subject.model.sample_shape
  layout = Layout(
    subject.model.token_grid(upscaling.sides_times(trained, 2)),
    subject.model.token_grid(trained),
  )
  tokens = layout.places
  inward = options.get("inward", True)
  seen = window_mask(layout, inward).count(tokens, tokens)
  attention = float(np.mean(seen)) / tokens
  with jax.set_mesh(subject.mesh):
    dense = _dense(subject, seed, variant)
    match method:
      case "full":
        samples, attention = dense, 1.0
      case None:
        small = _small(subject, seed, variant)
        samples = jax.image.resize(small, dense.shape, "linear")
        samples, attention = np.asarray(samples), 0.0
      case "naive":
        options = {"density": attention, "seed": seed, **options}
        samples, _ = _draw(subject, seed, variant, method, options)
      case _:
        samples, which = _draw(subject, seed, variant, method, options)
        if options.get("override", True):
          # The first of two models runs full attention beside the windows.
          attention += 1 - float(np.mean(which))
  return {
    "attention": attention,
    "cosine": cosine_to_dense(samples, dense),
    **subject.quality(samples, subject.conditions(_ROWS[variant])["label"]),
  }
