"""Makes the example of a record of latents."""

import numpy as np

from input_pipeline.images.class_subset import ClassSubset
from input_pipeline.images.source import Source
from input_pipeline.latents.dataset import FLIPPED
from input_pipeline.stream import Example


class LatentReader:
  """A `stream.Reader` of moments, label, example and mask.

  Attributes:
    num_examples: that can be read.
  """

  def __init__(
    self,
    source: Source | ClassSubset,
    moments_shape: tuple[int, int, int],
    *,
    flip: bool,
  ):
    """Opens nothing.

    Args:
      source: the records.
      moments_shape: of each.
      flip: whether half of the examples to train on are the mirrored ones.
    """
    self.num_examples = len(source)
    self._source = source
    self._shape = moments_shape
    self._flip = flip

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    """The example of record `index`."""
    mirrored = self._flip and rng.random() < 0.5
    return self._example(index, FLIPPED if mirrored else "moments")

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """The example with its index, never mirrored; padding after the last."""
    del rng
    if index < self.num_examples:
      return self._example(index, "moments") | {"index": np.int32(index)}
    return {
      "moments": np.zeros(self._shape, np.float32),
      "label": np.int32(0),
      "example": np.int32(-1),
      "mask": np.float32(0),
      "index": np.int32(-1),
    }

  def _example(self, index: int, name: str) -> Example:
    record = self._source[index]
    return {
      "moments": record[name].astype(np.float32),
      "label": np.int32(record["label"]),
      "example": np.int32(record["example"]),
      "mask": np.float32(1),
    }
