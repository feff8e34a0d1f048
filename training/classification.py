"""Image classification as a task: what is minimised and what is counted."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline.images import mixing
from training import losses, paths

Batch = dict[str, jax.Array]

# The logit of a class that may not be chosen: finite, as 0 times it is 0.
_NEVER = -1e30


class Classification:
  """Classifies images; labels are integers, one of `num_classes` each.

  A task is what `training.train_step` and `training.evaluation` know of a job:
  `init`, `prepare`, `loss` and `evaluate`. All its sums are over examples with
  mask 1, so that padding and damaged records weigh nothing. Nor do images whose
  label is no class, as -1 in the test splits of competitions: `_masked` takes
  them out, and they are summed as "unlabelled".
  """

  def __init__(
    self,
    model: nn.Module,
    config: ml_collections.ConfigDict,
    *,
    num_classes: int,
  ):
    """Takes the model, and of the config what its methods name."""
    losses.classification_loss(
      config.loss.name, jnp.zeros((1, 2)), jnp.zeros((1, 2))
    )
    _check_pixel_statistics(config.data)
    self.model = model
    self.config = config
    self.num_classes = num_classes

  def metric_names(self) -> tuple[str, ...]:
    """Of the means that `evaluate` is for; `metrics.DIRECTIONS` has each."""
    top5 = ("accuracy_top5",) if self.num_classes > 5 else ()
    return ("accuracy", "loss", *top5)

  def init(self, key: jax.Array) -> dict[str, Any]:
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
        `[batch]`, mask float32 `[batch]`.

    Returns:
      image, target `[batch, classes]`, label, mask and unlabelled.
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
    }

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
    self, params: Any, batch_stats: Any, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """Summed loss of a prepared (micro-)batch, new statistics, summed metrics.

    A sum and not a mean: only the caller knows how many examples the whole
    batch has.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    inputs, method = batch["image"], None
    if self.config.frozen_trunk:
      inputs = self.model.apply(
        jax.lax.stop_gradient(variables), inputs, method="features"
      )
      method = "classify"
    with _masked_statistics(batch["mask"]):
      logits, new = self.model.apply(
        variables,
        inputs,
        train=True,
        method=method,
        rngs={"dropout": key},
        mutable=["batch_stats"],
      )
    sums = self._sums(logits, batch)
    return sums["loss"], (new.get("batch_stats", {}), sums)

  def trainable(self) -> Callable[[str], bool]:
    """Tells of a parameter's path whether this task trains it."""
    if not self.config.frozen_trunk:
      return lambda path: True

    def head(key):
      variables = self.init(key)
      size = self.config.data.image_size
      images = jnp.zeros((1, size, size, self.config.data.channels))
      maps = self.model.apply(variables, images, method="features")
      return self.model.init(key, maps, method="classify")["params"]

    used = jax.eval_shape(head, jax.random.key(0))
    return frozenset(paths.flatten_with_names(used)).__contains__

  def evaluate(
    self, variables: dict[str, Any], batch: Batch
  ) -> dict[str, jax.Array]:
    """Summed metrics of a batch, on targets that are not smoothed.

    Args:
      variables: of the model.
      batch: as `prepare` takes it; or label uint8 `[batch, classes]` with ones
        at the labels of an image, which is right with any of them
        (arXiv 2006.07159).

    Returns:
      Sums over the examples with mask 1: weight, the number of those with a
      class, and unlabelled, of those without; loss, which for several labels is
      that of equal shares; accuracy; and accuracy_top5, if there are more
      classes.
    """
    sums = self.evaluate_classes(variables, batch)
    # Unused, so that jit leaves them out.
    del sums["class_examples"], sums["class_correct"]
    return sums

  def evaluate_classes(
    self,
    variables: dict[str, Any],
    batch: Batch,
    *,
    among: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    """Like `evaluate`, with `class_examples` and `class_correct` [classes].

    Args:
      variables: of the model.
      batch: as for `evaluate`.
      among: bool [classes], those that the model may choose; all if None.
    """
    batch = self._masked(batch)
    logits = self.model.apply(
      variables, self.normalize(batch["image"]), train=False
    )
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

  def predict(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
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


def _masked_statistics(mask: jax.Array) -> Any:
  """A context in which batch norms of any model leave out what is masked.

  Args:
    mask: float `[batch]`, 0 for examples that move no statistics.
  """
  # Statistics of nothing would be NaN; a batch of nothing has no weight.
  counted = jnp.where(mask.any(), mask, 1)

  def add_mask(call, args, kwargs, context):
    # Here and not in each signature from the model down to the layer: nothing
    # between them has to know.
    called = context.method_name == "__call__"
    if called and isinstance(context.module, nn.BatchNorm):
      shape = (-1,) + (1,) * (args[0].ndim - 1)
      kwargs = {**kwargs, "mask": counted.reshape(shape)}
    return call(*args, **kwargs)

  return nn.intercept_methods(add_mask)
