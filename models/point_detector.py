"""A detector of boxes from one map of any backbone: FCOS on one level.

"FCOS: Fully Convolutional One-Stage Object Detection" (arXiv 1904.01355)
without centre-ness and pyramid: each place of a map tells the scores of the
classes and its distances to the four sides of a box. Between backbone and head
features may be changed by prototypes (`models.prototypes`); see `refinement`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, normalization, prototypes, registry, taps

Dtype = layers.Dtype
# By what prototypes change features: of the paper, ours, and not at all.
REFINEMENTS = ("none", "fused", "residual")
# The collection of prototypes, which training moves.
PROTOTYPES = "prototypes"


class PointDetector(taps.Tapped):
  """Scores and boxes of each place.

  Attributes:
    backbone: name of a model of images.
    backbone_options: fields of it.
    level: which of its maps.
    num_classes: of objects.
    head_width: channels of the head.
    refinement: "none"; "fused", features as PPR and NCM leave them; or
      "residual", which is ours.
    positive: whether PPR takes part.
    negative: whether NCM does.
    thresholds: of PPR and of NCM.
    gains: likewise.
    dtype: of computation.
    param_dtype: of parameters.
    remat: whether the backbone's blocks are computed again for the gradient.
  """

  backbone: str = "vit_tiny_16_224"
  backbone_options: Mapping[str, Any] = nn.FrozenDict()
  level: int = -1
  num_classes: int = 4
  head_width: int = 64
  refinement: str = "none"
  positive: bool = True
  negative: bool = True
  thresholds: tuple[float, float] = (0.75, 0.75)
  gains: tuple[float, float] = (1.0, 0.5)
  dtype: Dtype = jnp.float32
  param_dtype: Dtype = jnp.float32
  remat: bool = False

  def setup(self):
    if self.refinement not in REFINEMENTS:
      raise registry.unknown("refinement", self.refinement, REFINEMENTS)
    if (kind := registry.kind(self.backbone)) != "image":
      raise ValueError(
        f"backbone is {self.backbone!r}, of kind {kind!r}; it must be one of "
        'models.list(kind="image").'
      )
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    self.trunk = registry.create(
      self.backbone,
      num_classes=0,
      remat=self.remat,
      **{**self.backbone_options, **dtypes},
    )
    if self.refinement != "none":
      self.refine = Refinement(
        self.num_classes,
        self.refinement == "residual",
        self.positive,
        self.negative,
        self.thresholds,
        self.gains,
      )
    self.head = Head(self.num_classes, self.head_width, **dtypes)

  def __call__(
    self,
    images: jax.Array,
    boxes: jax.Array | None = None,
    labels: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Maps images to logits and boxes of all places.

    In training prototypes are those of the images at hand, and kept in the
    collection "prototypes"; else they are the kept ones.

    Args:
      images: [batch, height, width, 3], normalised.
      boxes: float [batch, most, 4], top, left, bottom, right in pixels.
      labels: int [batch, most], -1 for none. Both only training needs, and only
        with a refinement.
      train: see above.

    Returns:
      (logits, boxes): float32 [batch, places, classes] and
      [batch, places, 4], in pixels. Places are in row-major order; `places`
      has their centres.
    """
    map_ = self.trunk.features(images, train=train)[self.level]
    stride = images.shape[1] / map_.shape[1]
    if self.refinement != "none":
      map_ = self.refine(map_, stride, boxes, labels, train)
    logits, distances = self.head(taps.tap(self, "features", map_))
    batch, *sides, _ = map_.shape
    centers = places(sides, stride)
    offsets = distances.reshape(batch, -1, 4) * stride
    signs = jnp.asarray([-1.0, -1.0, 1.0, 1.0])
    corners = jnp.tile(centers, (1, 2))[None] + signs[None, None] * offsets
    return logits.reshape(batch, -1, self.num_classes), corners


class Refinement(nn.Module):
  """Features as prototypes change them; fields are those of `PointDetector`."""

  num_classes: int
  residual: bool
  positive: bool
  negative: bool
  thresholds: tuple[float, float]
  gains: tuple[float, float]

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    stride: float,
    boxes: jax.Array | None,
    labels: jax.Array | None,
    train: bool,
  ) -> jax.Array:
    batch, *sides, channels = x.shape
    shape = (self.num_classes, channels)
    classes = self.variable(PROTOTYPES, "classes", jnp.zeros, shape)
    ground = self.variable(PROTOTYPES, "background", jnp.zeros, shape[1:])
    if train and boxes is not None:
      classes.value, ground.value = prototypes.of_boxes(
        x.reshape(batch, -1, channels),
        inside(places(sides, stride), boxes),
        labels,
        self.num_classes,
      )
    positive = prototypes.refine_positive(
      x, classes.value, threshold=self.thresholds[0], gain=self.gains[0]
    )
    negative = prototypes.modulate_negative(
      x, ground.value, threshold=self.thresholds[1], gain=self.gains[1]
    )
    # A part that is left out puts nothing anywhere.
    if not self.positive:
      positive = _nowhere(positive)
    if not self.negative:
      negative = _nowhere(negative)
    for name, placed in (("positive", positive), ("negative", negative)):
      taps.tap(self, f"{name}_mask", placed.mask)
    if self.residual:
      return prototypes.fused_residually(x, positive, negative)
    return prototypes.fused(positive, negative)


class Head(nn.Module):
  """Two 3 x 3 convolutions, one for the logits and one for the distances."""

  num_classes: int
  width: int
  dtype: Dtype
  param_dtype: Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    made = []
    # A hundredth of the places has an object, as in focal loss's paper.
    for name, width, bias in (
      ("logits", self.num_classes, -4.6),
      ("distances", 4, 0.0),
    ):
      y = nn.Conv(self.width, (3, 3), name=f"{name}_conv", **dtypes)(x)
      y = normalization.LayerNorm(name=f"{name}_norm", epsilon=1e-6, **dtypes)(
        y
      )
      y = nn.Dense(
        width,
        bias_init=nn.initializers.constant(bias),
        name=name,
        **dtypes,
      )(nn.gelu(y))
      made.append(y.astype(jnp.float32))
    logits, distances = made
    return logits, jnp.exp(jnp.minimum(distances, 5.0))


def places(sides: tuple[int, int], stride: float) -> jax.Array:
  """Centres (row, column) in pixels, float32 [places, 2]."""
  axes = (stride * (jnp.arange(n) + 0.5) for n in sides)
  return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def inside(centers: jax.Array, boxes: jax.Array) -> jax.Array:
  """Which places a box has: bool [..., boxes, places].

  Args:
    centers: [places, 2].
    boxes: [..., boxes, 4].
  """
  low, high = boxes[..., None, :2], boxes[..., None, 2:]
  at = centers.reshape((1,) * (boxes.ndim - 1) + centers.shape)
  return jnp.all((at > low) & (at < high), axis=-1)


def _nowhere(placed: prototypes.Placed) -> prototypes.Placed:
  return prototypes.Placed(*map(jnp.zeros_like, placed))


KIND = "detection"
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  # A small ViT with patches of 8 pixels, for scenes of 64.
  "point_detector_vit_8_64": (
    PointDetector,
    {
      "backbone_options": nn.FrozenDict(
        patch_size=8,
        width=96,
        depth=4,
        heads=4,
        hidden_width=192,
        image_size=64,
        class_token=False,
      ),
    },
  ),
}
