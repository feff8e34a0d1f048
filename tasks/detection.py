"""Detection: boxes of objects and what they are."""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline import scenes
from models import point_detector
from sample_metrics import boxes as box_metrics
from tasks import detection_targets
from tasks.base import Batch, Task, Variables, apply_in_training, create_model
from training import evaluation
from training.ranges import Number

_NOT_MEANS = ("detections", "truth")


class Detection(Task):
  """Trains a point detector; sums are over images.

  The loss of an image is focal loss of its places and 1 - GIoU of those that
  have a box, over how many have one. What is found of all images is gathered,
  and measured as COCO does: `ap` is the mean of ten thresholds of overlap from
  0.5 to 0.95, `ap50` that of 0.5.
  """

  room = scenes
  unit = "image"
  directions = types.MappingProxyType(
    {"loss": "min", "ap": "max", "ap50": "max"}
  )
  curves = ("loss", "ap")
  given = ("dtype", "num_classes")
  # Statistics of images at hand, which another run's are not.
  added = (f"{point_detector.PROTOTYPES}/.*",)
  ranges = types.MappingProxyType(
    {
      "detection.most": Number(1, whole=True),
      "detection.overlap": Number(0, 1),
    }
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    self.model = create_model(
      config, "detection", num_classes=len(info.classes)
    )

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only detection has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(
      dict(name="point_detector_vit_8_64")
    )
    config.data = scenes.default_config()
    # Boxes that are found in an image, and how much two of them may overlap.
    config.detection = ml_collections.ConfigDict(dict(most=32, overlap=0.6))
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="ap"))
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """See `input_pipeline.scenes.shapes.scene`; index in evaluation only."""
    side, most = self.info.image_size, self.info.most_objects
    arrays = {
      "image": ((side, side, 3), jnp.uint8),
      "boxes": ((most, 4), jnp.float32),
      "labels": ((most,), jnp.int32),
    }
    if not train:
      arrays["index"] = (), jnp.int32
    return {
      name: jax.ShapeDtypeStruct((rows, *shape), dtype)
      for name, (shape, dtype) in arrays.items()
    }

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    side = self.info.image_size
    return self.model.init(key, jnp.zeros((1, side, side, 3)))

  def weight(self, batch: Batch) -> jax.Array:
    """How many images count."""
    if "index" in batch:
      return (batch["index"] >= 0).sum(dtype=jnp.float32)
    return jnp.float32(len(batch["image"]))

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """The summed loss of images, and collections as they move."""
    (logits, boxes), collections = apply_in_training(
      self.model,
      variables,
      normalized(batch["image"]),
      batch["boxes"],
      batch["labels"],
      rngs={"dropout": key},
    )
    loss = self._losses(logits, boxes, batch).sum()
    return loss, (collections, {"weight": self.weight(batch), "loss": loss})

  def _losses(self, logits, boxes, batch) -> jax.Array:
    """Of each image: float32 [batch]."""
    side = round(logits.shape[1] ** 0.5)
    centers = point_detector.places(
      (side, side), batch["image"].shape[1] / side
    )
    labels, targets = detection_targets.assigned(
      centers, batch["boxes"], batch["labels"]
    )
    there = labels >= 0
    # A box of nothing would have a gradient that is none.
    targets = jnp.where(there[..., None], targets, boxes)
    apart = 1 - detection_targets.generalized_iou(boxes, targets)
    apart = jnp.where(there, apart, 0.0).sum(1)
    focal = detection_targets.focal_loss(logits, labels)
    return (focal + apart) / jnp.maximum(there.sum(1), 1)

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums of weight and loss; what is found and true at the image's place.

    detections [images, most, 6] and truth [images, most, 5], so that the sum
    over batches has each image's own.
    """
    logits, boxes = self.model.apply(
      variables, normalized(batch["image"]), train=False
    )
    counts = batch["index"] >= 0
    made = detection_targets.found(
      logits, boxes, self.config.detection.most, self.config.detection.overlap
    )
    # Classes from 1 on: a row of zeros is none.
    truth = jnp.concatenate(
      [batch["boxes"], 1.0 + batch["labels"][..., None]], axis=-1
    )
    at = jnp.where(counts, batch["index"], self.info.num_eval_examples)

    def placed(x):
      empty = jnp.zeros((self.info.num_eval_examples, *x.shape[1:]))
      return empty.at[at].add(x, mode="drop")

    losses = jnp.where(counts, self._losses(logits, boxes, batch), 0.0)
    return {
      "weight": self.weight(batch),
      "loss": losses.sum(),
      "detections": placed(made),
      "truth": placed(truth),
    }

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """loss, ap, ap50, that of each class, images.

    Raises:
      ValueError: if nothing counted.
    """
    sums = {name: x for name, x in totals.items() if name not in _NOT_MEANS}
    result = evaluation.means(sums)
    detections = [
      (row[kept, :4], row[kept, 4], row[kept, 5].astype(int))
      for row in totals["detections"]
      for kept in [row[:, 4] > 0]
    ]
    truth = [
      (row[there, :4], row[there, 4].astype(int) - 1)
      for row in totals["truth"]
      for there in [row[:, 4] > 0]
    ]
    precision = box_metrics.average_precision(
      detections, truth, len(self.info.classes)
    )
    by_class = {
      f"ap_{name}": float(own)
      for name, own in zip(self.info.classes, precision.mean(0), strict=True)
    }
    return {
      **result,
      "ap": float(np.nanmean(precision)),
      "ap50": float(np.nanmean(precision[0])),
      **by_class,
      "images": float(totals["weight"]),
    }

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "AP 0.412, AP50 0.731, loss 0.8123 on 200 images"."""
    return (
      f"AP {result['ap']:.3f}, AP50 {result['ap50']:.3f}, loss "
      f"{result['loss']:.4f} on {result['images']:g} images"
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """loss, ap, ap50, ap of each class, images."""
    return dict(result)


def normalized(images: jax.Array) -> jax.Array:
  """uint8 [batch, height, width, 3] to -1..1."""
  return images.astype(jnp.float32) / 127.5 - 1
