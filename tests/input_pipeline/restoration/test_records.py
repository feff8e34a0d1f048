"""Pairs and clean images of prepared TFDS data sets."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import restoration
from input_pipeline.images import DamagedImageError, decode
from tests.input_pipeline.restoration.conftest import draw


class Records(tfds.core.GeneratorBasedBuilder):
  """Encoded images by the names of their features."""

  VERSION = tfds.core.Version("1.0.0")
  name = "records"
  examples = ()

  def _info(self):
    features = {
      name: tfds.features.Image(shape=(None, None, 3))
      for name in self.examples[0]
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {
      split: self._generate_examples() for split in ("train", "validation")
    }

  def _generate_examples(self):
    for index, example in enumerate(self.examples):
      yield index, {name: io.BytesIO(data) for name, data in example.items()}


@pytest.fixture
def prepare(tmp_path, config, monkeypatch):
  """A function that prepares examples and names them in the config."""

  def prepare(*examples):
    tfds.disable_progress_bar()
    monkeypatch.setattr(Records, "examples", examples)
    builder = Records(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare(download_dir=tmp_path / "downloads")
    config.name, config.data_dir = "records", str(tmp_path)
    return config

  return prepare


def _encode(image):
  return decode.encode_image(image)


def test_pairs(prepare):
  images = [(draw(n, 20, 24 + 2 * n), draw(n, 10, 12 + n)) for n in range(3)]
  config = prepare(
    *({"hr": _encode(hr), "lr": _encode(lr)} for hr, lr in images)
  )
  config.eval_split = "validation[1:]"
  info = restoration.dataset_info(config)
  assert (info.num_eval_examples, info.degradations) == (2, ("",))
  pairs = list(restoration.eval_pairs(config))
  assert [p.name for p in pairs] == [
    "validation[1:]_00000",
    "validation[1:]_00001",
  ]
  for pair, (hr, lr) in zip(pairs, images[1:], strict=True):
    np.testing.assert_array_equal(pair.clean, hr)
    np.testing.assert_array_equal(pair.degraded, lr)
  assert restoration.num_train_examples(config) == 12
  batches = restoration.train_iterator(config, seed=0, global_batch_size=2)
  assert next(batches)["clean"].shape == (2, 16, 16, 3)
  config.scale = 4
  with pytest.raises(ValueError, match="at scale 4 it must be 40 x 52"):
    next(restoration.eval_pairs(config))


def test_clean_images_and_damaged_ones(prepare):
  image = draw(0, 20, 24)
  config = prepare({"image": _encode(image)}, {"image": _encode(image)[:200]})
  pairs = restoration.eval_pairs(config)
  pair = next(pairs)
  np.testing.assert_array_equal(pair.degraded, restoration.imresize(image, 0.5))
  with pytest.raises(DamagedImageError, match="record 1 of 'records'"):
    next(pairs)
  config.patch_size = 11
  config.train_split = "train[:1]"
  batches = restoration.train_iterator(config, seed=0, global_batch_size=1)
  with pytest.raises(ValueError, match="20 x 24 pixels, but patches are of 22"):
    next(batches)


def test_other_features(prepare):
  config = prepare({"picture": _encode(draw(0, 20, 24))})
  with pytest.raises(ValueError, match="its features are picture"):
    restoration.dataset_info(config)
