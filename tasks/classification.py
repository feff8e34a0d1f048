"""Image classification: what is minimised, counted and shown."""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline import images as image_data
from input_pipeline.images import mixing
from models import normalization
from tasks import class_table, losses, predictions
from tasks.base import (
  Batch,
  Shown,
  Task,
  Variables,
  apply_in_training,
  create_model,
)
from training import evaluation, paths, summary
from training.ranges import Number

# The logit of a class that may not be chosen: finite, as 0 times it is 0.
_NEVER = -1e30


class Classification(Task):
  """Classifies images; labels are integers, one of `num_classes` each.

  Sums are over examples with mask 1, so that padding and damaged records weigh
  nothing. Nor do images whose label is no class, as -1 in the test splits of
  competitions: `_masked` takes them out, and they are summed as "unlabelled".
  """

  room = image_data
  unit = "image"
  directions = types.MappingProxyType(
    {"accuracy": "max", "loss": "min", "accuracy_top5": "max"}
  )
  counts = ("unlabelled", "damaged")
  progress = types.MappingProxyType({"loss": ".4f", "accuracy": ".1%"})
  curves = ("loss", "accuracy")
  given = ("dtype", "num_classes")
  ranges = types.MappingProxyType(
    {
      "loss.label_smoothing": Number(0, 1, below=True),
      "mixing.mixup_alpha": Number(0),
      "mixing.cutmix_alpha": Number(0),
    }
  )
  evaluate_options = types.MappingProxyType(
    {
      "per_class": ("", "A CSV file to write, of the accuracy of each class."),
      "among_present": (
        False,
        "Choose among the classes that occur, as for ImageNet-A and R.",
      ),
    }
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model, for the classes of `info`.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    losses.classification_loss(
      config.loss.name, jnp.zeros((1, 2)), jnp.zeros((1, 2))
    )
    _check_pixel_statistics(config.data)
    self.num_classes = len(info.class_names)
    self.model = create_model(config, "image", num_classes=self.num_classes)

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only image classification has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="maxvit_tiny_224"))
    # Trains what stands behind the feature maps only. The trunk keeps its
    # parameters and statistics, and runs as in evaluation.
    config.frozen_trunk = False
    config.data = image_data.default_config()
    # Pixel values are divided by 255, then normalised with these.
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)
    config.loss = ml_collections.ConfigDict(
      dict(name="softmax", label_smoothing=0.0)
    )
    config.mixing = ml_collections.ConfigDict(
      dict(mixup_alpha=0.0, cutmix_alpha=0.0)
    )
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="accuracy"))
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """image uint8 [rows, height, width, channels], label, mask, damaged [rows].

    In evaluation label is uint8 [rows, classes] if images have several.
    """
    data = self.config.data
    label = ((rows,), jnp.int32)
    if self.info.many_labels and not train:
      label = ((rows, self.num_classes), jnp.uint8)
    shapes = {
      "image": (
        (rows, data.image_size, data.image_size, data.channels),
        jnp.uint8,
      ),
      "label": label,
      "mask": ((rows,), jnp.float32),
      "damaged": ((rows,), jnp.bool_),
    }
    return {
      name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()
    }

  def metric_names(self) -> tuple[str, ...]:
    """Those of `directions`; the best five are told of more classes only."""
    top5 = ("accuracy_top5",) if self.num_classes > 5 else ()
    return ("accuracy", "loss", *top5)

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    size = self.config.data.image_size
    images = jnp.zeros((1, size, size, self.config.data.channels))
    return self.model.init(key, images, train=False)

  def normalize(self, images: jax.Array) -> jax.Array:
    """uint8 images to float32 with the config's mean and deviation."""
    # On the device, so that a quarter of the bytes cross the host link.
    mean = jnp.asarray(self.config.data.mean, jnp.float32)
    std = jnp.asarray(self.config.data.std, jnp.float32)
    images = images.astype(jnp.float32) / 255
    return (images - mean[None, None, None]) / std[None, None, None]

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """Turns a whole batch into what `loss` takes: mixed images, soft targets.

    Args:
      key: randomness of mixup and CutMix.
      batch: image uint8 `[batch, height, width, channels]`, label int32
        `[batch]`, mask float32 `[batch]`, damaged bool `[batch]`.

    Returns:
      image, target `[batch, classes]`, label, mask, unlabelled and damaged.
    """
    batch = self._masked(batch)
    mask = batch["mask"]
    images = self.normalize(batch["image"])
    # Whatever is there, as NaN times a gradient of 0 is NaN.
    images = jnp.where(mask[:, None, None, None] > 0, images, 0)
    targets = jax.nn.one_hot(batch["label"], self.num_classes)
    mix = self.config.mixing
    if mix.mixup_alpha or mix.cutmix_alpha:
      images, targets = mixing.mix(
        key,
        images,
        targets,
        mask,
        mixup_alpha=mix.mixup_alpha,
        cutmix_alpha=mix.cutmix_alpha,
      )
    return {
      "image": images,
      "target": losses.smooth_labels(targets, self.config.loss.label_smoothing),
      # Of a mixture, the class that has the larger share.
      "label": targets.argmax(-1),
      "mask": mask,
      "unlabelled": batch["unlabelled"],
      "damaged": batch["damaged"],
    }

  def weight(self, batch: Batch) -> jax.Array:
    """How many images count."""
    return batch["mask"].sum()

  def _masked(self, batch: Batch) -> Batch:
    """Takes out what has no class; unlabelled `[batch]` is 1 for that."""
    label, mask = batch["label"], batch["mask"]
    if label.ndim == 1:
      known = (label >= 0) & (label < self.num_classes)
    else:
      known = (label > 0).any(-1)
    return {
      **batch,
      "mask": jnp.where(known, mask, 0),
      "unlabelled": jnp.where(known, 0, mask),
    }

  def loss(
    self, variables: Variables, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
    """Summed loss of a prepared (micro-)batch, new statistics and sums."""
    inputs, method = self.inputs(variables, batch)
    with normalization.masked_statistics(batch["mask"]):
      logits, collections = apply_in_training(
        self.model, variables, inputs, method=method, rngs={"dropout": key}
      )
    sums = self._sums(logits, batch)
    return sums["loss"], (collections, sums)

  def inputs(
    self, variables: Variables, batch: Batch
  ) -> tuple[Any, str | None]:
    """What is differentiated takes, of a prepared batch, and by which method.

    With a frozen trunk, its maps and the model's "classify".
    """
    images = batch["image"]
    if not self.config.frozen_trunk:
      return images, None
    return self.model.apply(variables, images, method="features"), "classify"

  def logits(self, variables: Variables, batch: Batch) -> jax.Array:
    """In evaluation, float32 [batch, classes]."""
    images = self.normalize(batch["image"])
    return self.model.apply(variables, images, train=False)

  def trainable(self) -> Callable[[str], bool] | None:
    """With a frozen trunk, what is behind the feature maps."""
    if not self.config.frozen_trunk:
      return None

    def head(key):
      variables = self.init(key)
      size = self.config.data.image_size
      images = jnp.zeros((1, size, size, self.config.data.channels))
      maps = self.model.apply(variables, images, method="features")
      return self.model.init(key, maps, method="classify")["params"]

    used = jax.eval_shape(head, jax.random.key(0))
    return frozenset(paths.flatten_with_names(used)).__contains__

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Summed metrics of a batch, on targets that are not smoothed.

    Args:
      variables: of the model.
      batch: as `prepare` takes it; or label uint8 `[batch, classes]` with ones
        at the labels of an image, which is right with any of them
        (arXiv 2006.07159).

    Returns:
      Sums over the examples with mask 1: weight, the number of those with a
      class, and unlabelled, of those without; damaged, of those that could not
      be read; loss, which for several labels is that of equal shares; accuracy;
      and accuracy_top5, if there are more classes.
    """
    sums = self.evaluate_classes(variables, batch)
    # Unused, so that jit leaves them out.
    del sums["class_examples"], sums["class_correct"]
    return sums

  def evaluate_classes(
    self,
    variables: Variables,
    batch: Batch,
    *,
    among: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    """`evaluate_step`, with `class_examples` and `class_correct` [classes].

    Args:
      variables: of the model.
      batch: as for `evaluate_step`.
      among: bool [classes], those that the model may choose; all if None.
    """
    batch = self._masked(batch)
    logits = self.logits(variables, batch)
    if among is not None:
      logits = jnp.where(among[None], logits, _NEVER)
    if batch["label"].ndim == 1:
      targets = shares = jax.nn.one_hot(batch["label"], self.num_classes)
    else:
      targets = shares = batch["label"].astype(jnp.float32)
      if self.config.loss.name != "sigmoid":
        shares = targets / jnp.maximum(targets.sum(-1, keepdims=True), 1)
    sums = self._sums(logits, {**batch, "target": shares})
    correct = batch["mask"] * (self._rank(logits, batch["label"]) < 1)
    return sums | {
      "class_examples": batch["mask"] @ targets,
      "class_correct": correct @ targets,
    }

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means, and how many examples were there.

    Raises:
      ValueError: if no example was usable.
    """
    result = super().summarize(totals)
    return result | {"examples": int(totals["weight"])}

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "accuracy 98.06 %, loss 0.0812 on 360 examples"."""
    damaged, unlabelled = result["damaged"], result["unlabelled"]
    return (
      f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f} "
      f"on {result['examples']} examples"
      + (f", {damaged} damaged ones left out" if damaged else "")
      + (f", {unlabelled} without a class left out" if unlabelled else "")
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """examples, top1 and top5."""
    return {
      "examples": result["examples"],
      "top1": result["accuracy"],
      "top5": result.get("accuracy_top5"),
    }

  def evaluate(
    self, variables, mesh, progress, *, per_class="", among_present=False
  ):
    """Evaluates the split, and writes a table of its classes."""
    data = self.config.data
    among = image_data.present_classes(data) if among_present else None
    step = functools.partial(self.evaluate_classes, among=among)
    result = self.evaluate_split(mesh, step).run(variables, progress=progress)
    counts = [result.pop(f"class_{name}") for name in ("examples", "correct")]
    if per_class and jax.process_index() == 0:
      class_table.write(per_class, self.info.class_names, *counts)
    return result

  def show(
    self,
    variables: Variables,
    evaluations: Sequence[evaluation.SplitEvaluation],
    workdir: str,
  ) -> Shown:
    """Draws what the model says of some images into predictions.png."""
    images, labels = predictions.first_examples(evaluations[0].batches)
    probabilities = np.asarray(jax.jit(self.predict)(variables, images))
    summary.write_picture(
      workdir,
      "predictions.png",
      lambda file: predictions.plot_predictions(
        images, labels, probabilities, self.info.class_names, file
      ),
    )
    return Shown(files=("predictions.png",))

  def predict(self, variables: Variables, images: jax.Array) -> jax.Array:
    """Class probabilities, float32 `[batch, classes]`, of uint8 images."""
    logits = self.model.apply(variables, self.normalize(images), train=False)
    logits = logits.astype(jnp.float32)
    if self.config.loss.name == "sigmoid":
      return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits)

  def _sums(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    mask = batch["mask"]
    loss = losses.classification_loss(
      self.config.loss.name, logits, batch["target"]
    )
    rank = self._rank(logits, batch["label"])
    # `where`, since a padded row may be infinite and 0 * inf is NaN.
    sums = {
      "weight": mask.sum(),
      "unlabelled": batch["unlabelled"].sum(),
      "damaged": batch["damaged"].sum(dtype=jnp.float32),
      "loss": jnp.where(mask > 0, loss * mask, 0).sum(),
      "accuracy": (mask * (rank < 1)).sum(),
    }
    if "accuracy_top5" in self.metric_names():
      sums["accuracy_top5"] = (mask * (rank < 5)).sum()
    return sums

  def _rank(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many others are not below the (best) true one: int `[batch]`."""
    if labels.ndim == 1:
      true_logit = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    else:
      true_logit = jnp.where(labels > 0, logits, -jnp.inf)
      true_logit = true_logit.max(-1, keepdims=True)
    # A constant or NaN output is last and not first.
    return self.num_classes - 1 - (logits < true_logit).sum(-1)


def _check_pixel_statistics(data: ml_collections.ConfigDict) -> None:
  for field in ("mean", "std"):
    values = np.asarray(data[field], np.float64)
    fits = values.shape in ((1,), (data.channels,))
    fits = fits and np.isfinite(values).all()
    if not fits or (field == "std" and (values <= 0).any()):
      number = "finite number" + (" above zero" if field == "std" else "")
      raise ValueError(
        f"data.{field}={data[field]} does not fit data.channels="
        f"{data.channels}: give one {number}, or one for each channel."
      )
