"""Data sets on disk for the tests of the pipeline."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import images
from input_pipeline.images import decode, digits


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
  """A data_dir that holds the digits."""
  data_dir = tmp_path_factory.mktemp("digits")
  digits.prepare(data_dir)
  return data_dir


@pytest.fixture
def config(digits_dir):
  """`config.data` of the real digits."""
  config = images.default_config()
  config.data_dir = str(digits_dir)
  return config


class Tiny(tfds.core.GeneratorBasedBuilder):
  """Any encoded images, with the labels 0, 1, 0, 1, ...

  And with several: that one, none, both, that one, none, both, ...
  """

  name = "tiny"
  VERSION = tfds.core.Version("1.0.0")
  encoded = ()

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(names=["cat", "dog"]),
          "all_labels": tfds.features.Sequence(
            tfds.features.ClassLabel(names=["cat", "dog"])
          ),
          "id": tfds.features.Text(),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, data in enumerate(self.encoded):
      yield (
        i,
        {
          "image": io.BytesIO(data),
          "label": i % 2,
          "all_labels": ([i % 2], [], [0, 1])[i % 3],
          "id": f"id {i}",
        },
      )


@pytest.fixture
def write_tiny(tmp_path):
  """A function that writes encoded images as "tiny" and returns data_dir."""

  def write(encoded):
    tfds.disable_progress_bar()
    builder = Tiny(data_dir=tmp_path, file_format="array_record")
    builder.encoded = encoded
    builder.download_and_prepare(download_dir=tmp_path / "downloads")
    return tmp_path

  return write


@pytest.fixture
def encoded():
  """Ten random encoded PNGs of different sizes."""
  rng = np.random.default_rng(0)
  return [
    decode.encode_image(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8))
    for i in range(10)
  ]
