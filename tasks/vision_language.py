"""Answers to questions about an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from tasks.base import Batch, Task, Variables, create_model
from tasks.sequence_labeling import SequenceLabeling


class VisionLanguage(SequenceLabeling):
  """Tells the words of a text that count, of an image and the words before.

  Sums are over words by their weights. Data are sources of
  `input_pipeline.sequences` that have images, and say by "image_start" before
  which token of its text each stands, if not before all.
  """

  unit = "answer"
  given = ("dtype", "vocabulary_size")

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model, for the words of `info`.

    Raises:
      ValueError: for data without images, or a field that does not fit.
    """
    Task.__init__(self, config, info)
    if "image" not in info.arrays or info.classes != info.vocabulary_size:
      raise ValueError(
        f"data.source is {config.data.source!r}, which has no images and "
        "words; task='vision_language' needs one such as 'digits_grid'."
      )
    self.model = create_model(
      config, "vision_language", vocabulary_size=info.vocabulary_size
    )
    self.units_per_example = int((info.arrays["weights"] > 0).sum())

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only this task has."""
    config = SequenceLabeling.default_config()
    config.model.name = "vision_language"
    config.data.source = "digits_grid"
    config.checkpoint.best_metric = "accuracy"
    return config

  def init(self, key: jax.Array) -> Variables:
    """Initial variables of the model."""
    image = self.info.arrays["image"]
    images = jnp.zeros((1, *image.shape), jnp.float32)
    return self.model.init(key, jnp.zeros((1, 1), jnp.int32), images)

  def inputs(
    self, batch: Batch
  ) -> tuple[Sequence[jax.Array], Mapping[str, jax.Array]]:
    """Words, pixels, and where the image stands."""
    start = batch.get("image_start", 0)
    return (batch["tokens"], pixels(batch["image"]), start), {}

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means, of the groups too, and how often what is absent is not denied.

    Raises:
      ValueError: if nothing counted.
    """
    result = super().summarize(totals)
    if "accuracy_absent" in result:
      result["hallucination"] = 1.0 - result["accuracy_absent"]
    return result

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "accuracy 81.20 %, loss 0.5031 on 2400 answers"."""
    return (
      f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f} on "
      f"{result['labels']:g} answers"
    )


def pixels(images: jax.Array) -> jax.Array:
  """Maps uint8 to what the model sees, from -1 to 1."""
  return images.astype(jnp.float32) / 127.5 - 1.0
