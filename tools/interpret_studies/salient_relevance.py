"""Salient relevance: does the saliency step do more than a blur?"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from scipy import ndimage

from input_pipeline import digits
from interpret import context_saliency, localization, relevance
from interpret import relevance_layers as kinds
from interpret import relevance_rules as rules
from tools import array_training

TITLE = "Salient Relevance (1712.08268)"
TEXT = """\
A network of three convolutions learns which digit of 8 x 8 pixels is somewhere
on a canvas of 32 x 32 that is full of straight strokes and of pieces of other
digits, 4 x 4 pixels each. Relevance of the winning logit goes back to the
pixels: gradient x input, which is LRP-0 everywhere; the rules of the paper's
code, z+ for dense layers and LRP-0 for convolutions; and z+ everywhere. Each
map is scored as it is, |R|; blurred, with the sigma that puts most of it into
the box on images for validation, of 0.5 to 4 pixels; blurred by 2 pixels, which
smooths about as much as the patches of the saliency; and as its context-aware
saliency (SR). "In the box" is the share of the map in the digit's box, which is
6.25% of the canvas; "pointing" says how often its largest value is there;
"deletion" is the area under the probability of the predicted class as pixels
are blanked, most salient first, so that less is better. The paper's claim is
that SR shows the object better than the raw map; whether it does better than a
blur is the question, and whether the network matters: "random weights" has the
same scores of a network that has learned nothing, and a map that does as well
there explains nothing. Controls: the image itself for a map, and noise.
"""
COLUMNS = (
  ("accuracy", ".1%"),
  ("in_the_box", ".1%"),
  ("pointing", ".1%"),
  ("deletion", ".3f"),
  ("in_the_box,_random_weights", ".1%"),
  ("pointing,_random_weights", ".1%"),
  ("sigma", ".1f"),
)
SEEDS = (0, 1, 2, 3, 4)

_SIDE, _DIGIT = 32, 8
_STROKES, _LENGTH = 8, 7
_PIECES, _PIECE = 10, 4
_SIGMAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
_BATCH = 64
_FIXED_SIGMA = 2.0
# Digits of the training split that are kept for validation.
_VALIDATION = 200
# Steps of training, images to score and to choose sigma with, and widths.
_SIZES = {
  "full": (800, 200, 100, (16, 32, 64)),
  "test": (2, 4, 4, (2, 2, 3)),
}
_RULES = {
  "gradient x input": {},
  "LRP, the code's rules": relevance.REPOSITORY_RULES,
  "LRP, z+": {kinds.Conv: rules.z_plus, kinds.Dense: rules.z_plus},
}
_MAPS = (*_RULES, "the image", "noise")
_TREATMENTS = ("raw", "blurred", "blurred by 2", "SR")


def rows(variant: str) -> list[tuple[str, dict[str, Any]]]:
  """The names of rows and what they are of; of a test, some."""
  found = [
    (f"{name}: {treatment}", {"map": name, "treatment": treatment})
    for name in _MAPS
    for treatment in _TREATMENTS
  ]
  if variant == "full":
    return found
  return [row for row in found if "code" in row[0]]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Scores the maps of a row.

  Args:
    folder: in which the network of each seed is kept.
    name: of the row.
    options: its map and its treatment.
    seed: of data, training and noise.
    variant: "full" or "test".

  Returns:
    What COLUMNS names; without sigma and random weights where there are none.
  """
  del name
  _, images, tuning, widths = _SIZES[variant]
  trained = _trained(folder, widths, seed, variant)
  test = canvases("test", images, (seed, 1))
  validation = canvases("validation", tuning, (seed, 2))
  logits = _functions(widths)[1](trained, test["image"])
  treat, found = treatment(widths, trained, validation, options, seed)
  maps = treat(_raw(widths, trained, test["image"], options["map"], seed))
  found |= _scores(maps, test["box"])
  found["accuracy"] = float((logits.argmax(-1) == test["label"]).mean())
  found["deletion"] = float(_deletion(widths)(trained, test["image"], maps))
  if options["map"] in _RULES:
    random = _functions(widths)[0](seed + 1000)
    maps = treat(_raw(widths, random, test["image"], options["map"], seed))
    for figure, value in _scores(maps, test["box"]).items():
      found[f"{figure},_random_weights"] = value
  return found


def make_model(widths: tuple[int, int, int]) -> nn.Sequential:
  """Three convolutions, of which the largest of each channel is read."""
  first, second, third = widths
  return nn.Sequential(
    [
      nn.Conv(first, (3, 3)),
      nn.relu,
      kinds.MaxPool(),
      nn.Conv(second, (3, 3)),
      nn.relu,
      kinds.MaxPool(),
      nn.Conv(third, (3, 3)),
      nn.relu,
      kinds.MaxPool((_SIDE // 4,) * 2),
      kinds.Moved(lambda x: x.reshape(len(x), -1)),
      nn.Dense(10),
    ]
  )


def canvases(
  split: str, number: int, seed: int | tuple[int, ...]
) -> dict[str, np.ndarray]:
  """Digits among strokes.

  Args:
    split: "train", "validation" or "test"; they share no digit.
    number: of canvases.
    seed: of digits, places and strokes.

  Returns:
    "image" float32 [number, 32, 32, 1] from 0 to 1, "label" [number], and "box"
    [number, 4]: top, left, bottom, right.
  """
  rng = np.random.default_rng(seed)
  drawings, labels = digits.load("test" if split == "test" else "train")
  if split != "test":
    kept = (
      np.s_[-_VALIDATION:] if split == "validation" else np.s_[:-_VALIDATION]
    )
    drawings, labels = drawings[kept], labels[kept]
  chosen = rng.integers(len(labels), size=number)
  image = strokes(rng, number, _STROKES)
  for _ in range(_PIECES):
    _paste(rng, image, _pieces(rng, drawings, number))
  corner = _paste(rng, image, drawings[chosen])
  return {
    "image": image[..., None].astype(np.float32),
    "label": labels[chosen],
    "box": np.concatenate([corner, corner + _DIGIT], axis=1),
  }


def strokes(rng: np.random.Generator, number: int, count: int) -> np.ndarray:
  """Draws straight strokes of one pixel's width on black.

  Args:
    rng: of places, directions and ink.
    number: of images.
    count: of strokes on each.

  Returns:
    float64 [number, 32, 32] from 0 to 1.
  """
  image = np.zeros((number, _SIDE, _SIDE))
  start = rng.uniform(0, _SIDE, (number, count, 1, 2))
  angle = rng.uniform(0, 2 * np.pi, (number, count, 1))
  ink = rng.uniform(0.4, 1.0, (number, count, 1))
  direction = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
  points = start + direction * np.arange(_LENGTH)[:, None]
  row, column = np.clip(points.astype(int), 0, _SIDE - 1).transpose(3, 0, 1, 2)
  ink = np.broadcast_to(ink, row.shape)
  np.maximum.at(image, (np.arange(number)[:, None, None], row, column), ink)
  return image


def treatment(widths, variables, validation, options, seed):
  """Returns (what makes a map of |R|, its figures): sigma, if it is blurred."""
  if options["treatment"] == "SR":
    return _salient, {}
  if options["treatment"] == "raw":
    return _absolute, {}
  if options["treatment"] == "blurred by 2":
    return functools.partial(_blurred, sigma=_FIXED_SIGMA), {}
  raw = _raw(widths, variables, validation["image"], options["map"], seed + 1)
  shares = [
    _scores(_blurred(raw, sigma), validation["box"])["in_the_box"]
    for sigma in _SIGMAS
  ]
  sigma = _SIGMAS[int(np.argmax(shares))]
  return functools.partial(_blurred, sigma=sigma), {"sigma": sigma}


def _pieces(rng, drawings, number):
  """Squares cut out of digits: [number, 4, 4]."""
  cut = rng.integers(_DIGIT - _PIECE + 1, size=(number, 2, 1)) + np.arange(
    _PIECE
  )
  which = rng.integers(len(drawings), size=(number, 1, 1))
  return drawings[which, cut[:, 0, :, None], cut[:, 1, None]]


def _paste(rng, image, drawings):
  """Puts drawings somewhere over images; returns corners [number, 2]."""
  number, side = drawings.shape[:2]
  corner = rng.integers(_SIDE - side + 1, size=(number, 2))
  inside = corner[:, :, None] + np.arange(side)
  where = np.arange(number)[:, None, None]
  image[where, inside[:, 0, :, None], inside[:, 1, None]] = drawings / 16
  return corner


@functools.cache
def _functions(widths):
  """Compiled (init, apply) of the network."""
  model = make_model(widths)
  blank = jnp.zeros((1, _SIDE, _SIDE, 1))
  initialize = jax.jit(lambda seed: model.init(jax.random.key(seed), blank))
  return initialize, jax.jit(model.apply)


def _trained(folder, widths, seed, variant):
  """The network of a seed, of its file if there is one."""
  path = folder / f"canvas_network_{variant}_{seed}.msgpack"
  return array_training.kept(path, lambda: _train(widths, seed, variant))


def _train(widths, seed, variant):
  model = make_model(widths)
  variables = _functions(widths)[0](seed)
  steps = _SIZES[variant][0]
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

  def loss(variables, image, label):
    logits = model.apply(variables, image)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return each.mean()

  def batch(i):
    made = canvases("train", _BATCH, (seed, 0, i))
    return made["image"], made["label"]

  return array_training.minimized(
    loss, optimizer, variables, (batch(i) for i in range(steps))
  )


def _raw(widths, variables, images, name, seed):
  """Signed maps [images, 32, 32, 1] of the class that wins."""
  if name == "the image":
    return jnp.asarray(images)
  if name == "noise":
    return jax.random.normal(jax.random.key(seed), images.shape)
  return _propagation(widths, name)(variables, images)[1][0]


# Compiled once for all rows and seeds.
@functools.cache
def _propagation(widths, name):
  layers = relevance.of_sequential(make_model(widths))
  layers = relevance.with_rules(layers, _RULES[name])
  return jax.jit(functools.partial(relevance.propagate, layers))


def _absolute(raw):
  return jnp.abs(raw[..., 0])


def _blurred(raw, sigma):
  maps = np.asarray(_absolute(raw))
  return jnp.asarray(ndimage.gaussian_filter(maps, (0, sigma, sigma)))


_salient = jax.jit(context_saliency.salient_relevance)


def _scores(maps, boxes):
  boxes = jnp.asarray(boxes)
  return {
    "in_the_box": float(localization.mass_in_box(maps, boxes).mean()),
    "pointing": float(localization.points_into_box(maps, boxes).mean()),
  }


@functools.cache
def _deletion(widths):
  """Makes the area under the winning class's probability, mean of images."""
  model = make_model(widths)

  @jax.jit
  def area(variables, images, maps):
    winner = model.apply(variables, images).argmax(-1)

    def score(images):
      chances = jax.nn.softmax(model.apply(variables, images))
      return jnp.take_along_axis(chances, winner[:, None], axis=1)[:, 0]

    curve = localization.deletion_curve(score, images, maps)
    return localization.area_under(curve).mean()

  return area
