"""Prototypes against double loops, and what the masks do at their limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import prototypes

CHANNELS, CLASSES = 5, 3
rng = np.random.default_rng(0)
FEATURES = rng.normal(size=(2, 3, 4, CHANNELS)).astype(np.float32)
OWN = rng.normal(size=(CLASSES, CHANNELS)).astype(np.float32)
GROUND = rng.normal(size=CHANNELS).astype(np.float32)


def _cosine(x, y):
  return x @ y / math.sqrt((x @ x) * (y @ y))


def test_positive_places_get_the_mean_of_prototypes():
  placed = prototypes.refine_positive(
    FEATURES, OWN, threshold=0.3, gain=0.7, temperature=0.5
  )
  for at in np.ndindex(FEATURES.shape[:-1]):
    f = FEATURES[at].astype(float)
    cosines = [_cosine(f, p.astype(float)) for p in OWN]
    weights = [math.exp(c / 0.5) for c in cosines]
    mixed = sum(w * p for w, p in zip(weights, OWN, strict=True)) / sum(weights)
    there = max(cosines) > 0.3
    expected = there * (f + 0.7 * mixed)
    assert placed.mask[at] == there
    np.testing.assert_allclose(placed.features[at], expected, atol=1e-6)
  assert 0 < placed.mask.mean() < 1


def test_negative_places_get_the_background():
  placed = prototypes.modulate_negative(
    FEATURES, GROUND, threshold=0.1, gain=0.4
  )
  for at in np.ndindex(FEATURES.shape[:-1]):
    f = FEATURES[at].astype(float)
    there = _cosine(f, GROUND.astype(float)) > 0.1
    assert placed.mask[at] == there
    expected = there * (f + 0.4 * GROUND)
    np.testing.assert_allclose(placed.features[at], expected, atol=1e-6)
  assert 0 < placed.mask.mean() < 1


def _both(low, high):
  return (
    prototypes.refine_positive(FEATURES, OWN, threshold=low, gain=0.0),
    prototypes.modulate_negative(FEATURES, GROUND, threshold=high, gain=0.0),
  )


def test_a_place_of_neither_is_zero_and_one_of_both_doubles():
  nothing, everything = _both(1.1, 1.1), _both(-1.1, -1.1)
  np.testing.assert_array_equal(prototypes.fused(*nothing), 0 * FEATURES)
  np.testing.assert_array_equal(prototypes.fused(*everything), 2 * FEATURES)
  for placed in (nothing, everything):
    kept = prototypes.fused_residually(FEATURES, *placed)
    np.testing.assert_allclose(kept, FEATURES, atol=1e-6)
  shares = prototypes.coverage(*_both(0.3, 0.1))
  assert shares["neither"] > 0
  assert shares["both"] > 0
  total = shares["positive"] + shares["negative"] - shares["both"]
  assert float(total + shares["neither"]) == pytest.approx(1)


def test_residual_adds_what_was_put():
  positive = prototypes.refine_positive(FEATURES, OWN, threshold=0.3)
  negative = prototypes.modulate_negative(FEATURES, GROUND, threshold=0.1)
  found = prototypes.fused_residually(FEATURES, positive, negative)
  expected = FEATURES.copy()
  for placed in (positive, negative):
    mask = np.asarray(placed.mask)
    expected[mask] += (np.asarray(placed.features) - FEATURES)[mask]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_prototypes_are_means_inside_and_outside_of_boxes():
  places = FEATURES.reshape(2, 12, CHANNELS)
  inside = rng.uniform(size=(2, 3, 12)) < 0.4
  labels = np.array([[0, 2, -1], [2, -1, 0]])
  found = prototypes.of_boxes(places, inside, labels, CLASSES)
  for own in range(CLASSES):
    rows = [
      places[b, p]
      for b in range(2)
      for n in range(3)
      for p in range(12)
      if labels[b, n] == own and inside[b, n, p]
    ]
    mean = np.mean(rows, axis=0) if rows else np.zeros(CHANNELS)
    np.testing.assert_allclose(found.classes[own], mean, atol=1e-6)
  rows = [
    places[b, p]
    for b in range(2)
    for p in range(12)
    if not any(labels[b, n] >= 0 and inside[b, n, p] for n in range(3))
  ]
  np.testing.assert_allclose(found.background, np.mean(rows, 0), atol=1e-6)
  # A class that is not there fits nowhere.
  absent = prototypes.refine_positive(
    FEATURES, jnp.zeros((1, CHANNELS)), threshold=0.0
  )
  assert not absent.mask.any()


def test_alignment_is_the_share_of_the_diagonal():
  visual, text = rng.normal(size=(2, 4, CHANNELS))
  terms = np.array(
    [[math.exp(_cosine(v, t) / 0.2) for t in text] for v in visual]
  )
  expected = -math.log(np.trace(terms) / terms.sum())
  loss = prototypes.alignment_loss(visual, text, temperature=0.2)
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  # All alike: log(pairs). Each its own and no other: almost nothing.
  alike = np.ones((4, CHANNELS))
  assert float(prototypes.alignment_loss(alike, alike)) == pytest.approx(
    math.log(4)
  )
  assert float(prototypes.alignment_loss(np.eye(4), np.eye(4))) < 1e-4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_reach_features_inside_the_mask_alone(dtype):
  features = jnp.asarray(FEATURES, dtype)

  def total(features):
    placed = prototypes.refine_positive(features, OWN, threshold=0.3)
    return (placed.features.astype(jnp.float32) ** 2).sum(), placed

  gradient, placed = jax.grad(total, has_aux=True)(features)
  assert gradient.dtype == placed.features.dtype == dtype
  reached = np.any(np.asarray(gradient, np.float32) != 0, axis=-1)
  np.testing.assert_array_equal(reached, placed.mask)
  assert np.isfinite(np.asarray(gradient, np.float32)).all()
  # Zeros have no direction, and no gradient that is none.
  nothing = jax.grad(lambda x: total(x)[0])(jnp.zeros_like(features))
  assert np.isfinite(np.asarray(nothing, np.float32)).all()
