"""JPEGs that cost what photographs cost, as a TFDS data set.

There is no ImageNet on most machines. Noise with the amplitude spectrum of
photographs, 1 / frequency, has about the size in bytes of an ImageNet image of
the same resolution and quality, and so about the cost of decoding.
"""

import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NAME = "photographs"
SHAPE = (375, 500)
QUALITY = 90
# Records repeat so many different images. Grain's shuffle is slow on few.
DISTINCT = 64
COUNT = 2048


def draw(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
  """An image, uint8 `[height, width, 3]`, whose channels go together."""
  rng = np.random.default_rng(seed)
  frequency = np.hypot(
    np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
  )
  frequency[0, 0] = np.inf
  phases = np.exp(2j * np.pi * rng.random((4, *frequency.shape)))
  noise = np.fft.irfft2(phases / frequency**1.1, s=shape)
  # The last one is common to the three channels.
  planes = noise[3] + 0.35 * noise[:3]
  planes = 128 + 50 * planes / planes.std()
  return np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0)


@functools.cache
def encode_all() -> tuple[bytes, ...]:
  """The JPEGs of the different images."""
  return tuple(_encode(seed) for seed in range(DISTINCT))


def _encode(seed: int) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(draw(seed)).save(buffer, "jpeg", quality=QUALITY)
  return buffer.getvalue()


class Photographs(tfds.core.GeneratorBasedBuilder):
  """As TFDS stores ImageNet."""

  name = NAME
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "file_name": tfds.features.Text(),
          "image": tfds.features.Image(encoding_format="jpeg"),
          "label": tfds.features.ClassLabel(num_classes=1000),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {"train": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    jpegs = encode_all()
    for i in range(COUNT):
      yield (
        i,
        {
          "file_name": f"{i:08}.JPEG",
          "image": io.BytesIO(jpegs[i % DISTINCT]),
          "label": i % 1000,
        },
      )


def prepare(data_dir: str, file_format: str) -> tfds.core.DatasetBuilder:
  """Writes the data set below `data_dir` as "array_record" or "tfrecord"."""
  tfds.disable_progress_bar()
  builder = Photographs(data_dir=data_dir, file_format=file_format)
  builder.download_and_prepare(download_dir=f"{data_dir}/downloads")
  return builder
