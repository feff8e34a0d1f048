"""Makes the example of a record: decoded, transformed and checked."""

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from input_pipeline.images import decode, transform_spec
from input_pipeline.images.source import Source
from input_pipeline.stream import Example

# Stands for the shape of images that differ: an ordinary photograph.
_PHOTOGRAPH = (375, 500)


class Reader:
  """Called with a record's index and a random generator, gives an example.

  Attributes:
    num_examples: that can be read.
    class_names: by label.
  """

  def __init__(
    self,
    source: Source,
    config: ml_collections.ConfigDict,
    field: str,
    *,
    images: Sequence[str] = ("image",),
  ):
    """Tries the transform on an empty image, so that faults show early.

    Args:
      source: the records.
      config: `config.data`.
      field: of `config` that has the transform, such as "train_transform".
      images: which features of a record are images. The transform moves all of
        them alike.

    Raises:
      ValueError: if the transform or its result does not fit the config.
    """
    self.num_examples = len(source)
    self.class_names = source.class_names
    self._source = source
    self._images = images
    self._num_labels = len(source.class_names) if source.many_labels else 0
    self._channels = config.channels
    self._skip_damaged = config.skip_damaged
    self._shape = (config.image_size, config.image_size, config.channels)
    try:
      self._transform = transform_spec.create_transform(
        config[field], image_size=config.image_size, images=images
      )
    except ValueError as error:
      raise ValueError(f"{field}: {error}") from error
    height, width = source.image_shape[:2]
    sides = (height, width) if height and width else _PHOTOGRAPH
    empty = np.zeros((*sides, config.channels), np.uint8)
    result = self._transform(
      dict.fromkeys(images, empty), np.random.default_rng(0)
    )
    shape = result[images[0]].shape
    if shape != self._shape:
      raise ValueError(
        f"{field}: {config[field]!r} makes images of {shape} from"
        f" {empty.shape}, but image_size and channels ask for {self._shape}:"
        " end it with resize()."
      )

  def __call__(self, index: int, rng: np.random.Generator) -> Example:
    """The example of record `index`.

    Raises:
      DamagedImageError: if its image is, unless `skip_damaged`.
    """
    record = self._source[index]
    try:
      encoded = {
        name: decode.EncodedImage(record[name], self._channels)
        for name in self._images
      }
      pixels = self._transform(encoded, rng)
    except decode.DamagedImageError as error:
      message = f"Damaged image: {self._source.describe(index)}: {error}"
      if not self._skip_damaged:
        raise decode.DamagedImageError(
          f"{message} With skip_damaged=True it would be left out."
        ) from error
      logging.warning("%s", message)
      return self._blank() | {"damaged": np.True_}
    return pixels | {
      "label": self._encode(record["label"]),
      "mask": np.float32(1),
      "damaged": np.False_,
    }

  def with_index(self, index: int, rng: np.random.Generator) -> Example:
    """The example with its index; padding after the last one."""
    if index >= self.num_examples:
      return self._blank() | {"index": np.int32(-1)}
    return self(index, rng) | {"index": np.int32(index)}

  def _blank(self) -> Example:
    """An example that the mask takes out of loss and metrics."""
    return dict.fromkeys(self._images, np.zeros(self._shape, np.uint8)) | {
      "label": self._encode([] if self._num_labels else 0),
      "mask": np.float32(0),
      "damaged": np.False_,
    }

  def _encode(self, label: Any) -> np.ndarray:
    if not self._num_labels:
      return np.int32(label)
    # Neither -1 nor any other number that is no class.
    return np.isin(np.arange(self._num_labels), label).astype(np.uint8)
