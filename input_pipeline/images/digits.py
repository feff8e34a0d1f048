"""The handwritten digits of `input_pipeline.digits` as a TFDS data set."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from input_pipeline import digits
from input_pipeline.images import built_in, decode


class Digits(tfds.core.GeneratorBasedBuilder):
  """Images `[8, 8, 1]` and labels 0 to 9, in scikit-learn's order."""

  name = "digits"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=digits.__doc__,
      homepage="https://archive.ics.uci.edu/dataset/80",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
      # Keeps the order of the source on disk.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {split: self._generate_examples(split) for split in digits.SPLITS}

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    images, labels = digits.load(split)
    # From 0..16 to 0..255, and whole numbers.
    images = np.round(images * (255 / 16)).astype(np.uint8)
    for index, image in enumerate(images):
      # Of encoded bytes TFDS makes examples without TensorFlow.
      encoded = io.BytesIO(decode.encode_image(image[..., None]))
      label = int(labels[index])
      yield index, {"image": encoded, "label": label}


def prepare(data_dir: epath.Path) -> None:
  """Writes the digits below `data_dir`, unless they are there."""
  built_in.prepare(Digits(data_dir=data_dir, file_format="array_record"))
