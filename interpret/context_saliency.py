"""Context-aware saliency, and salient relevance: saliency of a relevance map.

Goferman, Zelnik-Manor and Tal, "Context-Aware Saliency Detection" (CVPR 2010):
a pixel is salient if patches around it are unlike all others, and like ones,
where there are any, are near. "Beyond saliency" (Li et al., arXiv 1712.08268)
runs it on the map of layer-wise relevance propagation, so that pixels become
areas; its code has the authors' binary for this step, so the step is ours.

Where sources differ or are silent we chose: borders are padded with their edge;
a patch is not compared with itself; queries are all pixels, and what they are
compared with stands half a patch apart; foci are relative to the maximum (the
paper, as recalled, has 0.8 absolute); distances to foci are divided by the
diagonal; maps are resized with `jax.image.resize`, linear and antialiased.

It does not remove isolated outliers: a lone bright pixel is salient. Areas
appear by the size of patches and the mean over scales, which is smoothing, so
that a blurred map is the control.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scale:
  """One scale of the saliency.

  Attributes:
    size: of the map, by that of the map given.
    patch: side of patches in pixels of this scale, odd.
    neighbours: sizes of the maps whose patches are compared with, `size` too.
  """

  size: float
  patch: int
  neighbours: tuple[float, ...]


# Sizes and patches of a public re-implementation; neighbours at size, size / 2
# and size / 4 if that is at least 0.2.
SCALES = (
  Scale(1.0, 7, (1.0, 0.5, 0.25)),
  Scale(0.8, 5, (0.8, 0.4, 0.2)),
  Scale(0.5, 3, (0.5, 0.25)),
  Scale(0.3, 3, (0.3,)),
)
# The exponent of a patch of 7 x 7 is 1, and of smaller ones larger.
_REFERENCE_AREA = 49


def salient_relevance(
  relevance: jax.Array, scales: Sequence[Scale] = SCALES, **options
) -> jax.Array:
  """Saliency of |relevance|, with all channels of an image scaled together.

  The sign is gone: evidence for and against a class is one.

  Args:
    relevance: [batch, height, width, channels].
    scales: of `saliency`.
    **options: of `saliency`.

  Returns:
    float32 [batch, height, width], from 0 to 1.
  """
  _check_maps(relevance)
  return saliency(unit_range(jnp.abs(relevance)), scales, **options)


def saliency(
  maps: jax.Array,
  scales: Sequence[Scale] = SCALES,
  *,
  nearest: int = 64,
  position_weight: float = 3.0,
  step: int | None = None,
  focus: float = 0.8,
) -> jax.Array:
  """Returns the saliency of each pixel: its mean over scales, near foci.

  At a scale it is 1 - exp(-mean of the `nearest` smallest d_ij * 49 / area),
  d_ij = |p_i - p_j| / (1 + position_weight * distance), with patches p of all
  channels, and distance by the longer side. The mean over scales is multiplied
  with 1 - distance to the nearest focus / diagonal. The cost grows with the
  square of the pixels: bring maps to 64 pixels or less.

  Args:
    maps: [batch, height, width, channels], channels from 0 to 1 each: Lab of a
      photograph, or a relevance map of `unit_range`.
    scales: see `Scale`.
    nearest: patches that count, those that are most alike; all if fewer.
    position_weight: 0 leaves distances between patches out, and saliency then
      moves with what is seen; else where the map ends matters, as the farthest
      patches count as the most alike.
    step: pixels between patches that are compared with; half a patch if None.
    focus: pixels of at least this share of the maximum are foci.

  Returns:
    float32 [batch, height, width], from 0 to 1; 0 for a constant map.

  Raises:
    ValueError: if maps or options cannot be.
  """
  _check_maps(maps)
  _check(scales, nearest, position_weight, step, focus)

  def of_one(image):
    # Only differences count, and those of a constant map shall be 0.
    image = image - image[:1, :1]
    found = [
      _resized(
        _at_scale(image, scale, nearest, position_weight, step)[..., None],
        image.shape[:2],
      )[..., 0]
      for scale in scales
    ]
    mean = jnp.clip(sum(found) / len(found), 0.0, 1.0)
    return mean * _near_foci(mean, focus)

  # One after another: the distances of all pixels of a map are many.
  return jax.lax.map(of_one, maps.astype(jnp.float32))


def unit_range(maps: jax.Array) -> jax.Array:
  """Scales each map [batch, ...] to 0 to 1; a constant one becomes 0."""
  axes = tuple(range(1, maps.ndim))
  low = maps.min(axes, keepdims=True)
  range_ = maps.max(axes, keepdims=True) - low
  return (maps - low) / jnp.where(range_ > 0, range_, 1)


def _at_scale(image, scale, nearest, position_weight, step):
  """Saliency of all pixels at one scale: [rows, columns]."""
  step = max(scale.patch // 2, 1) if step is None else step
  image_here = _scaled(image, scale.size)
  queries, query_places = _patches(image_here, scale.patch, 1)
  keys, key_places = [], []
  for size in scale.neighbours:
    patches, places = _patches(_scaled(image, size), scale.patch, step)
    # Only at the scale itself is a patch its own neighbour.
    level = 0.0 if size == scale.size else 1.0
    keys.append(patches)
    key_places.append(np.insert(places, 2, level, axis=1))
  keys = jnp.concatenate(keys)
  key_places = jnp.asarray(np.concatenate(key_places), jnp.float32)
  count = min(nearest, len(keys) - 1)
  if count < 1:
    raise ValueError(
      f"maps of {image.shape[0]} x {image.shape[1]} pixels have one patch to "
      f"compare with at {scale}; they must be larger, or have other scales"
    )

  def of_row(row):
    patches, places = row  # [columns, values], [columns, 2]
    apart = jnp.square(patches[:, None] - keys[None]).sum(-1)
    apart = jnp.where(apart > 0, jnp.sqrt(jnp.where(apart > 0, apart, 1)), 0)
    offset = places[:, None] - key_places[None, :, :2]
    far = jnp.sqrt(jnp.square(offset).sum(-1))
    apart = apart / (1 + position_weight * far)
    itself = (far == 0) & (key_places[None, :, 2] == 0)
    apart = jnp.where(itself, jnp.inf, apart)
    return -jax.lax.top_k(-apart, count)[0].mean(-1)

  rows, columns = image_here.shape[:2]
  by_row = (
    queries.reshape(rows, columns, -1),
    jnp.asarray(query_places, jnp.float32).reshape(rows, columns, 2),
  )
  smallest = -jax.lax.map(of_row, by_row)
  return 1 - jnp.exp(smallest * (_REFERENCE_AREA / scale.patch**2))


def _patches(image, side, step):
  """Patches [number, side**2 * channels], and places by the longer side."""
  rows, columns = image.shape[:2]
  border = side // 2
  padded = jnp.pad(image, ((border, border), (border, border), (0, 0)), "edge")
  parts = [
    padded[i : i + rows : step, j : j + columns : step]
    for i in range(side)
    for j in range(side)
  ]
  values = jnp.concatenate(parts, axis=-1)
  places = np.indices((rows, columns))[:, ::step, ::step].reshape(2, -1).T
  return values.reshape(-1, values.shape[-1]), places / max(rows, columns)


def _near_foci(found, focus):
  """1 - the distance to the nearest focus, by the diagonal."""
  rows, columns = found.shape
  places = jnp.asarray(
    np.indices((rows, columns)).reshape(2, -1).T, jnp.float32
  )
  foci = (found >= focus * found.max()).reshape(-1)

  def of_row(row):
    apart = jnp.square(row[:, None] - places[None]).sum(-1)
    return jnp.where(foci[None], apart, jnp.inf).min(-1)

  apart = jax.lax.map(of_row, places.reshape(rows, columns, 2))
  diagonal = float(np.hypot(rows, columns))
  return 1 - jnp.sqrt(apart) / diagonal


def _scaled(image, size):
  rows, columns = (max(round(side * size), 1) for side in image.shape[:2])
  return _resized(image, (rows, columns))


def _resized(image, sides):
  if image.shape[:2] == sides:
    return image
  return jax.image.resize(image, (*sides, image.shape[2]), "linear")


def _check_maps(maps):
  if maps.ndim != 4 or maps.shape[1] * maps.shape[2] < 2:
    raise ValueError(
      f"maps have shape {maps.shape}; they must be [batch, height, width, "
      "channels] of two pixels or more"
    )


def _check(scales, nearest, position_weight, step, focus):
  for scale in scales:
    if scale.patch < 1 or scale.patch % 2 == 0 or not 0 < scale.size <= 1:
      raise ValueError(
        f"scales have {scale}; patch must be odd, and size in (0, 1]"
      )
    if scale.size not in scale.neighbours:
      raise ValueError(f"scales have {scale}; neighbours must include its size")
  if not scales:
    raise ValueError("scales is empty; there must be one or more")
  for name, value, fits, low in (
    ("nearest", nearest, nearest >= 1, "at least 1"),
    ("step", step, step is None or step >= 1, "at least 1, or None"),
    ("position_weight", position_weight, position_weight >= 0, "at least 0"),
    ("focus", focus, 0 < focus <= 1, "above 0 and at most 1"),
  ):
    if not fits:
      raise ValueError(f"{name} is {value}; it must be {low}")
