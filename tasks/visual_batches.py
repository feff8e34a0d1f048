"""Batches of pixels or latents with classes or texts, for all generators."""

from typing import Any

import jax
import jax.numpy as jnp

from models import gaussian_latents
from tasks.base import Batch


def spec(
  info: Any, rows: int, *, train: bool
) -> dict[str, jax.ShapeDtypeStruct]:
  """What is learned, what it is of, and mask float32 [rows].

  Pixels are image uint8 [rows, *image_shape], with damaged bool [rows]; latents
  are moments float32 [rows, height, width, 2 channels]. What they are of is
  label int32 [rows], or [rows, labels] if an example has several; or text
  float32 [rows, tokens, width] and text_length int32 [rows]. In evaluation
  there is index int32 [rows], the example's place in the split.

  Args:
    info: a `DatasetInfo` of `input_pipeline.latents` or `visual`.
    rows: of a batch.
    train: whether it is one to train on.
  """
  real, whole = jnp.float32, jnp.int32
  if info.latent_shape is None:
    arrays = {"image": (info.image_shape, jnp.uint8), "damaged": ((), bool)}
  else:
    *sides, channels = info.latent_shape
    arrays = {"moments": ((*sides, 2 * channels), real)}
  if info.text_shape is None:
    labels = getattr(info, "labels", 1)
    arrays["label"] = (labels,) if labels > 1 else (), whole
  else:
    arrays |= {"text": (info.text_shape, real), "text_length": ((), whole)}
  arrays["mask"] = (), real
  if not train:
    arrays["index"] = (), whole
  return {
    name: jax.ShapeDtypeStruct((rows, *shape), dtype)
    for name, (shape, dtype) in arrays.items()
  }


def clean(info: Any, keys: jax.Array, batch: Batch) -> jax.Array:
  """Pixels from -1 to 1, or latents with a deviation of about one.

  Args:
    info: as for `spec`.
    keys: [batch], that latents are drawn with.
    batch: as `spec` says.
  """
  if info.latent_shape is None:
    return batch["image"].astype(jnp.float32) / 127.5 - 1
  return jax.vmap(gaussian_latents.sample)(batch["moments"], keys) * info.scale


def condition(
  info: Any, num_classes: int, batch: Batch, drop: jax.Array
) -> Batch:
  """The classes or texts, but for those to drop and those that are none.

  Args:
    info: as for `spec`.
    num_classes: the class that stands for none.
    batch: as `spec` says.
    drop: bool [batch].
  """
  if info.text_shape is not None:
    length = jnp.where(drop, 0, batch["text_length"])
    return {"text": batch["text"], "text_length": length}
  label = batch["label"]
  drop = drop.reshape(drop.shape + (1,) * (label.ndim - 1))
  known = (label >= 0) & (label < num_classes) & ~drop
  return {"label": jnp.where(known, label, num_classes)}
