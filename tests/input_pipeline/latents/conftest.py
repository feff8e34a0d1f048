"""Folders of latents that no autoencoder made."""

import numpy as np
import pytest

from input_pipeline import latents
from input_pipeline.latents import config as latents_config
from input_pipeline.latents import dataset

# Height, width and twice the channels, all different.
SHAPE = (2, 3, 10)
NUM_EXAMPLES = {"train": 13, "test": 7}
CLASS_NAMES = ("zero", "one", "two")


def make_records(split, *, flipped=False):
  """The records of a split, for `dataset.write_split`."""
  seed = list(NUM_EXAMPLES).index(split)
  rng = np.random.default_rng(seed)
  records = []
  for i in range(NUM_EXAMPLES[split]):
    moments = rng.normal(size=SHAPE).astype(np.float16)
    record = {"moments": moments, "label": i % 3, "example": i}
    if flipped:
      record[dataset.FLIPPED] = moments[:, ::-1]
    records.append(record)
  return records


def make_encoding(**changes):
  """How the latents of these tests were made."""
  fields = latents_config.image_fields(latents.default_config())
  encoding = {
    "model": "autoencoder_test",
    "autoencoder": "/nowhere/autoencoder",
    "fingerprint": "0123456789abcdef",
    "scale": 0.25,
    "image_shape": (32, 48, 3),
    "fields": fields | {"image_size": 48, "train_transform": "resize"},
  }
  return dataset.Encoding(**(encoding | changes))


def write(folder, split, records, *, encoding=None, flipped=False):
  """Writes a split of latents."""
  dataset.write_split(
    folder,
    split,
    encoding or make_encoding(),
    CLASS_NAMES,
    records,
    moments_shape=SHAPE,
    dtype=np.float16,
    flipped=flipped,
  )


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """Latents of both splits, without mirrored ones."""
  path = tmp_path_factory.mktemp("latents")
  for split in NUM_EXAMPLES:
    write(path, split, make_records(split))
  return path


@pytest.fixture
def config(folder):
  """`config.data` of them."""
  config = latents.default_config()
  config.latents = str(folder)
  return config
