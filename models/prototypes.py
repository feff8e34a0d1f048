"""Prototypes of classes and background, put into features where they fit.

"Remedying Target-Domain Astigmatism for Cross-Domain Few-Shot Object Detection"
(arXiv 2603.18541), as two public notes on the paper that agree have it: PPR
puts prototypes of classes into places that look like objects, NCM one of the
background into places that look like none, and TSA aligns that with texts "not
[class]". The paper's thresholds and factors are not known; the defaults are
those of a public implementation of PPR and NCM by others.

All are functions of one level of a feature pyramid, [..., channels], whose
cosines are taken in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# What norms are at least, so that an absent class has no direction.
_TINY = 1e-6


class Prototypes(NamedTuple):
  """Means of features of some annotated images.

  Attributes:
    classes: float32 [classes, channels]; zeros of a class that is not there.
    background: float32 [channels].
  """

  classes: jax.Array
  background: jax.Array


class Placed(NamedTuple):
  """Features with prototypes, and where they were put.

  Attributes:
    features: as given, with zeros where no prototype was put.
    mask: bool [...], where one was.
  """

  features: jax.Array
  mask: jax.Array


def of_boxes(
  features: jax.Array, inside: jax.Array, labels: jax.Array, classes: int
) -> Prototypes:
  """Means inside the boxes of each class, and outside of all boxes.

  A place in two boxes of a class counts once for each. There is no gradient.

  Args:
    features: [batch, places, channels].
    inside: bool [batch, boxes, places], which places a box has.
    labels: int [batch, boxes], the class of a box, -1 for none.
    classes: how many there are.
  """
  features = jax.lax.stop_gradient(features).astype(jnp.float32)
  there = (labels >= 0)[..., None] & inside
  member = jax.nn.one_hot(labels, classes)  # [batch, boxes, classes]
  shares = jnp.einsum("bnk,bnp->bpk", member, there.astype(jnp.float32))
  sums = jnp.einsum("bpk,bpc->kc", shares, features)
  own = sums / jnp.maximum(shares.sum((0, 1)), 1.0)[:, None]
  outside = ~there.any(1)
  total = jnp.where(outside[..., None], features, 0.0).sum((0, 1))
  return Prototypes(own, total / jnp.maximum(outside.sum(), 1))


def refine_positive(
  features: jax.Array,
  classes: jax.Array,
  *,
  threshold: float = 0.75,
  gain: float | jax.Array = 1.0,
  temperature: float = 1.0,
) -> Placed:
  """PPR: M (f + gain sum_c softmax_c(s_c / T) p_c), M = max_c s_c > threshold.

  s_c is the cosine of f and the prototype of class c.

  Args:
    features: [..., channels].
    classes: [classes, channels].
    threshold: of the largest cosine.
    gain: of the prototypes.
    temperature: of their weights.
  """
  cosine = _cosine(features, classes)
  mask = cosine.max(-1) > threshold
  mixed = jax.nn.softmax(cosine / temperature, axis=-1) @ classes
  made = features + (gain * mixed).astype(features.dtype)
  return Placed(jnp.where(mask[..., None], made, 0), mask)


def modulate_negative(
  features: jax.Array,
  background: jax.Array,
  *,
  threshold: float = 0.75,
  gain: float | jax.Array = 0.5,
) -> Placed:
  """NCM: M (f + gain p), M = cosine of f and the background p > threshold.

  Args:
    features: [..., channels].
    background: [channels].
    threshold: of the cosine.
    gain: of the prototype.
  """
  mask = _cosine(features, background[None])[..., 0] > threshold
  shift = (gain * background).astype(features.dtype)
  made = features + jnp.broadcast_to(shift, features.shape)
  return Placed(jnp.where(mask[..., None], made, 0), mask)


def fused(positive: Placed, negative: Placed) -> jax.Array:
  """PPR + NCM: what is neither becomes zero, and what is both doubles."""
  return positive.features + negative.features


def fused_residually(
  features: jax.Array, positive: Placed, negative: Placed
) -> jax.Array:
  """Features with what both add, and unchanged elsewhere: ours, to compare."""
  added = (
    jnp.where(placed.mask[..., None], placed.features - features, 0)
    for placed in (positive, negative)
  )
  return features + sum(added)


def coverage(positive: Placed, negative: Placed) -> dict[str, jax.Array]:
  """Shares of the places: "positive", "negative", "both" and "neither"."""
  p, n = positive.mask, negative.mask
  parts = {"positive": p, "negative": n, "both": p & n, "neither": ~(p | n)}
  return {name: x.mean(dtype=jnp.float32) for name, x in parts.items()}


def alignment_loss(
  visual: jax.Array, text: jax.Array, *, temperature: float = 0.07
) -> jax.Array:
  """TSA: -log of the diagonal's share of all exp(cosine / T).

  Zero is its infimum, for one pair; n pairs that are alike have log(n).

  Args:
    visual: [pairs, dim], background prototypes in the shared space.
    text: [pairs, dim], those of texts "not [class]".
    temperature: T.
  """
  similarity = _cosine(visual, text) / temperature
  everything = jax.scipy.special.logsumexp(similarity)
  return everything - jax.scipy.special.logsumexp(jnp.diagonal(similarity))


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
  """Of [..., channels] with each of [n, channels], float32 [..., n]."""

  def unit(x):
    x = x.astype(jnp.float32)
    squared = jnp.square(x).sum(-1, keepdims=True)
    # The root of what is zero has no derivative.
    return x / jnp.sqrt(jnp.maximum(squared, _TINY**2))

  return unit(x) @ unit(y).T
