"""A seeded data set in memory: for tests, notebooks and throughput."""

from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from input_pipeline import checks
from input_pipeline.images import decode

# Records repeat after this many (or after one of each class): encoding takes
# longer than decoding, which is what a throughput is to show.
_NUM_DISTINCT = 256


class FakeRecords:
  """Random access to encoded images that depend on their label, plus noise.

  Each is encoded when it is first asked for, and kept.
  """

  def __init__(
    self, config: ml_collections.ConfigDict, split: str, rows: range
  ):
    """Takes `config.data.fake`, "train" or "test", and rows of that split."""
    self._split_seed = ("train", "test").index(split)
    self._rows = rows
    self._shape = tuple(config.image_shape)
    self._num_classes = config.num_classes
    self._encoding = config.encoding
    self._encoded: dict[int, bytes] = {}

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """The record: image as bytes, label as int."""
    distinct = self._rows[index] % max(_NUM_DISTINCT, self._num_classes)
    label = distinct % self._num_classes
    if distinct not in self._encoded:
      pixels = self._draw(distinct, label)
      self._encoded[distinct] = decode.encode_image(pixels, self._encoding)
    return {"image": self._encoded[distinct], "label": label}

  def _draw(self, index: int, label: int) -> np.ndarray:
    """A pattern of 4x4 colours for each label, with noise for each index."""
    height, width, channels = self._shape
    pattern = np.random.default_rng(label).integers(
      0, 256, size=(4, 4, channels), dtype=np.uint8
    )
    planes = [
      Image.fromarray(pattern[..., c]).resize((width, height))
      for c in range(channels)
    ]
    rng = np.random.default_rng((self._split_seed, index))
    noise = rng.normal(scale=32, size=self._shape)
    return np.clip(np.stack(planes, axis=-1) + noise, 0, 255).astype(np.uint8)


def check(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for fields of which no data set can be made."""
  shape = tuple(config.image_shape)
  sizes = all(type(size) is int and size > 0 for size in shape)
  if len(shape) != 3 or not sizes or shape[2] not in (1, 3):
    raise ValueError(
      f"fake.image_shape is {shape}, but must be (height, width, 1 or 3)."
    )
  for name in ("train_examples", "test_examples", "num_classes"):
    checks.check_integer(f"fake.{name}", config[name], 1)
  if config.encoding not in ("png", "jpeg"):
    raise ValueError(
      f"fake.encoding is {config.encoding!r}, but must be png or jpeg."
    )
