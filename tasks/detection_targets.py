"""What a place of a detector shall tell, how wrong it is, and what it finds."""

import functools

import jax
import jax.numpy as jnp

from models import point_detector

# Of focal loss (arXiv 1708.02002).
_ALPHA, _GAMMA = 0.25, 2.0


def assigned(
  centers: jax.Array, boxes: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Gives places the smallest box that they are in, as FCOS does.

  An object in which no place is goes to the place that is next to its middle.

  Args:
    centers: [places, 2].
    boxes: [batch, most, 4].
    labels: int [batch, most], -1 for none.

  Returns:
    (labels, boxes): int [batch, places], -1 for background, and
    [batch, places, 4].
  """
  within = point_detector.inside(centers, boxes)  # [batch, most, places]
  middle = (boxes[..., :2] + boxes[..., 2:]) / 2
  apart = middle[:, :, None] - centers[None, None]
  nearest = jnp.square(apart).sum(-1).argmin(-1)
  next_to = jax.nn.one_hot(nearest, len(centers), dtype=bool)
  within = jnp.where(within.any(-1, keepdims=True), within, next_to)
  area = jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
  size = jnp.where(within & (labels >= 0)[..., None], area[..., None], jnp.inf)
  own = size.argmin(1)  # [batch, places]
  there = jnp.isfinite(size.min(1))
  label = jnp.take_along_axis(labels, own, axis=1)
  box = jnp.take_along_axis(boxes, own[..., None], axis=1)
  return jnp.where(there, label, -1), box


def focal_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Summed over places and classes, of sigmoids; float32 [batch].

  Args:
    logits: [batch, places, classes].
    labels: int [batch, places], -1 for background.
  """
  target = jax.nn.one_hot(labels, logits.shape[-1])
  share = jax.nn.sigmoid(logits)
  missed = jnp.where(target > 0, 1 - share, share)
  weight = jnp.where(target > 0, _ALPHA, 1 - _ALPHA) * missed**_GAMMA
  loss = -jax.nn.log_sigmoid(jnp.where(target > 0, logits, -logits))
  return (weight * loss).sum((1, 2))


def generalized_iou(x: jax.Array, y: jax.Array) -> jax.Array:
  """GIoU (arXiv 1902.09630) of boxes [..., 4], pair by pair: [...]."""
  shared, union = _shared_and_union(x, y)
  around = _area(
    jnp.minimum(x[..., :2], y[..., :2]), jnp.maximum(x[..., 2:], y[..., 2:])
  )
  around = jnp.maximum(around, 1e-6)
  return shared / union - (around - union) / around


def _shared_and_union(
  x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Areas of boxes [..., 4], pair by pair; that of a union is not zero."""
  shared = _area(
    jnp.maximum(x[..., :2], y[..., :2]), jnp.minimum(x[..., 2:], y[..., 2:])
  )
  both = sum(_area(z[..., :2], z[..., 2:]) for z in (x, y))
  return shared, jnp.maximum(both - shared, 1e-6)


def _area(low: jax.Array, high: jax.Array) -> jax.Array:
  """Between corners [..., 2]; zero where the second is before the first."""
  return jnp.prod(jnp.maximum(high - low, 0), axis=-1)


@functools.partial(jax.vmap, in_axes=(0, 0, None, None))
def found(
  logits: jax.Array, boxes: jax.Array, most: int, overlap: float
) -> jax.Array:
  """Detections of an image, by falling score; vmapped over the batch.

  Of two of one class that overlap more than `overlap` the better stays.

  Args:
    logits: [places, classes].
    boxes: [places, 4].
    most: how many at most.
    overlap: intersection over union.

  Returns:
    float32 [most, 6]: box, score, class; score 0 where there is none.
  """
  classes = logits.shape[-1]
  scores, flat = jax.lax.top_k(jax.nn.sigmoid(logits).reshape(-1), most)
  place, label = flat // classes, flat % classes
  box = boxes[place]
  shared, union = _shared_and_union(box[:, None], box[None])
  rivals = (shared / union > overlap) & (label[:, None] == label[None])

  def keep(n, kept):
    better = rivals[n] & kept & (jnp.arange(most) < n)
    return kept.at[n].set(~better.any())

  kept = jax.lax.fori_loop(0, most, keep, jnp.ones(most, bool))
  return jnp.column_stack(
    [box, jnp.where(kept, scores, 0.0), label.astype(jnp.float32)]
  )
