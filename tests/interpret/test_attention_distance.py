"""Attention distance on maps whose distance is known, and of models."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from interpret import attention_distance as distances
from models import taps


def test_positions_are_row_major():
  places = distances.grid_positions((2, 3), (8.0, 0.5))
  expected = [
    (8.0 * i, 0.5 * j) for i, j in itertools.product((0, 1), range(3))
  ]
  np.testing.assert_array_equal(places, np.array(expected, np.float32))
  assert places.dtype == np.float32


def test_maps_of_known_distance():
  places = distances.grid_positions((3, 4))
  n = len(places)
  uniform = np.full((n, n), 1 / n)
  shifted = np.roll(np.eye(n).reshape(n, 3, 4), 1, axis=2).reshape(n, n)
  weights = jnp.asarray(np.stack([np.eye(n), uniform, shifted])[None])
  pairs = [math.dist(a, b) for a, b in itertools.product(places, repeat=2)]
  # The last column's next is three to the left.
  expected = [0.0, np.mean(pairs), (3 * 1 + 3) / 4]
  found = distances.attention_distance(weights, places)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  twice = distances.attention_distance(weights, 2 * places)
  np.testing.assert_allclose(twice, 2 * np.array(expected), rtol=1e-6)


def test_it_is_a_double_loop_over_queries_that_count():
  rng = np.random.default_rng(0)
  weights = rng.dirichlet(np.ones(6), (2, 3, 2, 4))  # Two batch axes, heads.
  q, k = rng.normal(size=(4, 2)), rng.normal(size=(6, 2))
  counted = rng.uniform(size=(2, 1, 1, 4)) < 0.6
  total, number = np.zeros(2), 0
  for b, w, i in itertools.product(range(2), range(3), range(4)):
    if not counted[b, 0, 0, i]:
      continue
    number += 1
    for head, j in itertools.product(range(2), range(6)):
      total[head] += weights[b, w, head, i, j] * math.dist(q[i], k[j])
  found = distances.attention_distance(
    jnp.asarray(weights), q, k, jnp.asarray(counted)
  )
  np.testing.assert_allclose(found, total / number, rtol=1e-5)
  # Keys that were cut off leave their share to the others.
  rest = jnp.asarray(weights)[..., 1:]
  found = distances.attention_distance(rest, q, k[1:])
  whole = distances.attention_distance(
    rest / rest.sum(-1, keepdims=True), q, k[1:]
  )
  np.testing.assert_allclose(found, whole, rtol=1e-6)


def test_distance_has_a_gradient():
  places = distances.grid_positions((2, 2))
  logits = jnp.asarray(np.random.default_rng(1).normal(size=(1, 1, 4, 4)))

  def total(logits):
    return distances.attention_distance(jax.nn.softmax(logits), places).sum()

  gradient = jax.grad(total)(logits)
  assert np.isfinite(gradient).all()
  step = 1e-2 * gradient
  rise = total(logits + step) - total(logits - step)
  assert rise == pytest.approx(2 * float((gradient * step).sum()), rel=1e-2)


def _model(name, **fields):
  model = models.create(name, num_classes=3, **fields)
  x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
  return model, jax.jit(model.init)(jax.random.key(1), x), x


def test_of_a_vit_without_its_class_token():
  model, variables, x = _model(
    "vit_tiny_16_224", patch_size=8, width=16, depth=1, heads=2, image_size=32
  )
  found = distances.of_model(model, variables, x, 8.0)
  (name,) = found
  _, maps = taps.read(model, variables, x, names=[name])
  weights = np.asarray(maps[name])[:, :, 1:, 1:]
  weights = weights / weights.sum(-1, keepdims=True)
  places = [(8 * i, 8 * j) for i in range(4) for j in range(4)]
  apart = np.array([[math.dist(a, b) for b in places] for a in places])
  expected = (weights * apart).sum(-1).mean((0, 2))
  np.testing.assert_allclose(found[name], expected, rtol=1e-5)


def test_of_windows():
  model, variables, x = _model(
    "maxvit_tiny_224",
    widths=(8,),
    depths=(1,),
    stem_widths=(8, 8),
    head_dim=4,
    window_size=4,
  )
  found = distances.of_model(model, variables, x)
  assert len(found) == 2  # Block and grid.
  widest = math.hypot(3, 3)
  for far in found.values():
    assert far.shape == (2,)
    assert (far > 0).all()
    assert (far < widest).all()


def test_errors():
  places = distances.grid_positions((2, 2))
  with pytest.raises(ValueError, match=r"must be \[batch, ..., heads, 4, 4\]"):
    distances.attention_distance(jnp.ones((1, 1, 4, 5)), places)
  with pytest.raises(ValueError, match="weights have shape"):
    distances.attention_distance(jnp.ones((4, 4)), places)
