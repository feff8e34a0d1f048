"""Digits of other sizes than in training: the entropy scale, and none."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from generation import methods
from models import taps

TITLE = "Variable-size scaling (2306.08645): scores that grow with ln N"
SUBJECT = "digits"
TEXT = """
Images of other sides than the 8 pixels of training, by the model as it is and
with scores times `factor`, sqrt(ln N / ln T) for `tokens` N where training had
16. The paper expects more tokens to flatten attention, and the factor to bring
`entropy`, the mean entropy of its rows over ln N, back to that of training (the
first row), with more complete objects; the effect on Frechet distances that
others measured is small. Controls: the size of training, where the factor is 1
and nothing changes, and the inverse of the factor, which a mere change of
scores would be as well as. Samples are averaged down, or repeated up, to 8 x 8
for the classifier; `entropy` is of images that were made, noised to the middle
of the path.
"""
COLUMNS = (
  ("tokens", ".0f"),
  ("factor", ".3f"),
  ("entropy", ".3f"),
  ("accuracy", ".1%"),
  ("frechet", ".2f"),
)
_STEPS = {"full": 20, "test": 2}
_ROWS = {"full": 64, "test": 4}
_MIDDLE = 500.0


def rows(variant):
  """Sides with each scale; at the smallest test two of them."""
  found = []
  for side in (8, 4, 16, 24):
    found.append((f"{side} x {side}", {"side": side, "power": 0}))
    found.append((f"{side} x {side}, entropy", {"side": side, "power": 1}))
    if side > 8:
      inverse = {"side": side, "power": -1}
      found.append((f"{side} x {side}, inverse factor", inverse))
  return found if variant == "full" else [found[i] for i in (0, 6, 5)]


def measure(subject, name, options, seed, variant):
  """Figures of samples of a size and a scale; see COLUMNS."""
  side, power = options["side"], options["power"]
  shape = (side, side)
  tokens, trained = (
    math.prod(subject.model.token_grid(sides))
    for sides in (shape, subject.model.sample_shape)
  )
  factor = math.sqrt(math.log(tokens) / math.log(trained)) ** power
  model, variables, method = subject.model, subject.variables, "full"
  if power == 1:
    method = "entropy_scale"
  elif power == -1:
    variables = _with_longer_queries(variables, factor)
  labels = subject.conditions(_ROWS[variant])["label"]
  samples = subject.draw(
    method,
    labels=labels,
    seed=seed,
    steps=_STEPS[variant],
    size=shape,
    variables=variables,
  )
  if power == 1:
    model = methods.scaled(model, "entropy")
  return {
    "tokens": tokens,
    "factor": factor,
    "entropy": _entropy(subject, model, variables, samples, labels, seed),
    **subject.quality(_enlarged(samples, subject.model.sample_shape), labels),
  }


def _with_longer_queries(variables, factor):
  """Queries of self-attention times a factor."""

  def scaled(path, leaf):
    names = [key.key for key in path]
    mine = names[-3:-1] == ["attention", "query"]
    return leaf * factor if mine else leaf

  return jax.tree_util.tree_map_with_path(scaled, variables)


def _entropy(subject, model, variables, samples, labels, seed) -> float:
  """Mean over rows, heads and layers of the entropy over ln N."""
  noise = np.random.default_rng(seed).standard_normal(samples.shape)
  x = subject.path.add_noise(
    jnp.asarray(samples), jnp.asarray(noise, jnp.float32), _MIDDLE
  )
  read = functools.partial(
    taps.read, model, names=["*/attention/attention_weights"]
  )

  @jax.jit
  def entropy(variables, x, label):
    times = jnp.full(len(x), _MIDDLE)
    maps = read(variables, x, times, label)[1].values()
    each = [-jnp.mean(jnp.sum(jax.scipy.special.xlogy(m, m), -1)) for m in maps]
    return jnp.mean(jnp.stack(each)) / math.log(next(iter(maps)).shape[-1])

  with jax.set_mesh(subject.mesh):
    return float(entropy(variables, x, jnp.asarray(labels, jnp.int32)))


def _enlarged(samples, shape):
  """Repeats pixels of what is smaller than `shape`."""
  for axis, side in enumerate(shape, 1):
    times = max(side // samples.shape[axis], 1)
    samples = np.repeat(samples, times, axis)
  return samples
