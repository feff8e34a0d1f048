"""Folders of small images that were made up."""

import numpy as np
import pytest

from input_pipeline import restoration
from input_pipeline.images import decode


def draw(seed, height, width):
  """A smooth image with some noise, uint8 [height, width, 3]."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(0, 255, (height // 4 + 1, width // 4 + 1, 3))
  smooth = coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
  noise = rng.normal(0, 8, smooth.shape)
  return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def write(tmp_path):
  """A function that writes images by file name and returns the folder."""

  def write(**images):
    for name, image in images.items():
      (tmp_path / f"{name}.png").write_bytes(decode.encode_image(image))
    return str(tmp_path)

  return write


@pytest.fixture
def config():
  """`config.data` of a folder, read by no thread."""
  config = restoration.default_config()
  config.name = "folder"
  config.patch_size = 8
  config.repeat = 4
  config.num_threads = 0
  return config
