"""Pyramid sparse attention in the model of moving digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from attention import pyramid
from models import taps
from tools.generation_subject import cosine_to_dense

TITLE = "PSA (2512.04025): what is looked at less is seen as means"
SUBJECT = "moving_digits"
TEXT = """
Videos of the trained size. Each block of 8 queries, half a frame, sees its most
important blocks of 8 keys as they are, the next as means of 2, 4 and 8 keys,
and the rest not at all. The paper's claim is that at one density means keep
more than leaving out does: so the first control has the same importance and
levels of 1 and 0 alone, and the second has the pyramid's levels at random
blocks. Expected: pyramid above both. `density` is of products of scores and
values, of all steps and layers; the estimate of importance, which costs a
sixteenth of the scores where a quarter of the positions is drawn, is not in it.
`cosine` is with the dense samples from the same noise. With 16 blocks a row
bounds are coarse, and so few tokens have little to skip.
"""
COLUMNS = (
  ("density", ".3f"),
  ("cosine", ".3f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
  ("consistency", ".3f"),
)
_STEPS = {"full": 20, "test": 2}
_ROWS = {"full": 96, "test": 4}
_BLOCKS = {"block_q": 8, "block_k": 8}
# Of 16 blocks: 1, 1, 0 and 3 at levels 1, 2, 4 and 8, a density of 0.117.
_PYRAMID = {**_BLOCKS, "bounds": (0.10, 0.15, 0.15, 0.35)}
# 2 blocks as they are: a density of 0.125.
_KEPT = {**_BLOCKS, "bounds": (0.125,) * 4}
# The preset of Wan 2.1 with 1.3B parameters.
_MASS = {
  **_BLOCKS,
  "chosen_by": "mass",
  "bounds": (0.5, 0.6, 0.7, 0.8),
  "caps": (0.7, 0.65, 0.6),
}


def rows(variant):
  """Dense, pyramids, and controls of the density of the first."""
  first = {"full_steps": _STEPS[variant] // 4}
  found = [
    ("dense", {}),
    ("pyramid", _PYRAMID),
    ("kept or left out", _KEPT),
    ("pyramid at random", {**_PYRAMID, "importance": "random"}),
    ("pyramid, a quarter of the steps dense", {**_PYRAMID, **first}),
    ("kept or left out, a quarter dense", {**_KEPT, **first}),
    (
      "pyramid at random, a quarter dense",
      {**_PYRAMID, **first, "importance": "random"},
    ),
    (
      "pyramid, estimated from a quarter of the positions",
      {**_PYRAMID, "seed": 0},
    ),
    ("pyramid, blocks of 2 x 2 x 2 tokens", {**_PYRAMID, "window": (2, 2, 2)}),
    ("by mass, capped by likeness", _MASS),
  ]
  return found if variant == "full" else [found[i] for i in (0, 1, 4, 9)]


def measure(subject, name, options, seed, variant):
  """Figures of samples by the pyramid; see COLUMNS."""
  del name
  steps = _STEPS[variant]
  labels = subject.conditions(_ROWS[variant])["label"]
  draw = functools.partial(subject.draw, labels=labels, seed=seed, steps=steps)
  dense = draw()
  samples, density = dense, 1.0
  if options:
    samples = draw("psa", options)
    first = options.get("full_steps", 0)
    share = _density(subject, options, dense, labels, seed)
    density = (first + (steps - first) * share) / steps
  return {
    "density": density,
    "cosine": cosine_to_dense(samples, dense),
    **subject.quality(samples, labels),
  }


def _density(subject, options, samples, labels, seed):
  """The mean over layers, and samples with a little, half and much noise."""
  options = {k: v for k, v in options.items() if k != "full_steps"}
  model = subject.model.clone(attend="pyramid", attend_options=options)
  x = jnp.asarray(samples[:8])
  noise = jax.random.normal(jax.random.key(seed), x.shape)

  @jax.jit
  def levels(time):
    noisy = subject.path.add_noise(x, noise, time)
    times = jnp.full(len(x), time)
    _, values = taps.read(
      model,
      subject.variables,
      noisy,
      times,
      jnp.asarray(labels[:8], jnp.int32),
      names=["*/levels"],
    )
    return values

  found = [
    np.mean(pyramid.density(levels_of_layer))
    for time in (100.0, 500.0, 900.0)
    for levels_of_layer in levels(jnp.float32(time)).values()
  ]
  return float(np.mean(found))
