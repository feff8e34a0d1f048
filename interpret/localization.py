"""Whether a map of an image shows where a thing is, and what a model used.

The first two ask for a box: the share of the map within, and whether the
largest value is (the pointing game of "Top-down Neural Attention by Excitation
Backprop", arXiv 1608.00507). Deletion asks the model: as pixels are blanked,
those of the largest values first, how fast does its score fall ("RISE", arXiv
1806.07421)? None says that a map explains: also score the same map of a network
with random weights ("Sanity Checks for Saliency Maps", 1810.03292).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def in_boxes(boxes: jax.Array, height: int, width: int) -> jax.Array:
  """Returns bool [batch, height, width], whether a pixel is in its box.

  Args:
    boxes: [batch, 4]: top, left, and the bottom and right that are the first
      outside, in pixels.
    height: of the maps.
    width: of the maps.
  """
  if boxes.ndim != 2 or boxes.shape[1] != 4:
    raise ValueError(
      f"boxes have shape {boxes.shape}; they must be [batch, 4], with top, "
      "left, bottom and right"
    )
  top, left, bottom, right = (boxes[:, i, None, None] for i in range(4))
  rows = jnp.arange(height)[None, :, None]
  columns = jnp.arange(width)[None, None]
  return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def mass_in_box(maps: jax.Array, boxes: jax.Array) -> jax.Array:
  """The share of a map that lies in its box: float32 [batch].

  A constant map has the box's share of the pixels, one of zeros too.

  Args:
    maps: [batch, height, width], not negative.
    boxes: as of `in_boxes`.
  """
  maps = maps.astype(jnp.float32)
  total = maps.sum((1, 2), keepdims=True)
  maps = jnp.where(total > 0, maps, 1.0)
  within = jnp.where(in_boxes(boxes, *maps.shape[1:]), maps, 0.0)
  return within.sum((1, 2)) / maps.sum((1, 2))


def points_into_box(maps: jax.Array, boxes: jax.Array) -> jax.Array:
  """Whether the largest value of a map lies in its box: bool [batch].

  The first of equal ones counts, row by row. The published game takes what is
  within 15 pixels for a hit; here there is no such margin.

  Args:
    maps: [batch, height, width].
    boxes: as of `in_boxes`.
  """
  within = in_boxes(boxes, *maps.shape[1:]).reshape(len(maps), -1)
  best = maps.reshape(len(maps), -1).argmax(1)
  return jnp.take_along_axis(within, best[:, None], axis=1)[:, 0]


def deletion_curve(
  score: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  maps: jax.Array,
  *,
  steps: int = 16,
  blank: float | jax.Array = 0.0,
) -> jax.Array:
  """The model's score as pixels are blanked, the most salient first.

  Args:
    score: maps images to [batch], as the probability of a class.
    images: [batch, height, width, channels].
    maps: [batch, height, width].
    steps: in which all pixels go.
    blank: what pixels become; broadcasts to `images`.

  Returns:
    [steps + 1, batch]: of no pixel blanked, ..., of all.

  Raises:
    ValueError: if maps and images do not fit, or `steps` is below 1.
  """
  if images.ndim != 4 or maps.shape != images.shape[:3] or steps < 1:
    raise ValueError(
      f"images have shape {images.shape}, maps {maps.shape} and steps is "
      f"{steps}; they must be [batch, height, width, channels], [batch, "
      "height, width] and at least 1"
    )
  order = jnp.argsort(-maps.reshape(len(maps), -1), axis=1)
  rank = jnp.argsort(order, axis=1).reshape(maps.shape)
  blank = jnp.broadcast_to(jnp.asarray(blank, images.dtype), images.shape)
  pixels = maps[0].size

  def after(step):
    gone = rank * steps < step * pixels
    return score(jnp.where(gone[..., None], blank, images))

  return jax.lax.map(after, jnp.arange(steps + 1))


def area_under(curve: jax.Array) -> jax.Array:
  """The mean height of curves [points, ...] by trapezoids: [...].

  Of a deletion curve, lower says that the map found what the score needs.
  """
  return (curve[0] / 2 + curve[1:-1].sum(0) + curve[-1] / 2) / (len(curve) - 1)
