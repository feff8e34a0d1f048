"""Fashion-MNIST, of the files that Debian's package has, as a TFDS data set.

70,000 grey images of 28 x 28 pixels, 60,000 of them for training (arXiv
1708.07747). `apt-get install dataset-fashion-mnist` puts them into FOLDER.
"""

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from input_pipeline import prepared
from input_pipeline.images import built_in, decode

FOLDER = epath.Path("/usr/share/datasets/fashion-mnist")
NAME = "fashion_mnist"
CLASSES = (
  "T-shirt/top",
  "Trouser",
  "Pullover",
  "Dress",
  "Coat",
  "Sandal",
  "Shirt",
  "Sneaker",
  "Bag",
  "Ankle boot",
)
_FILES = {
  "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
  "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_SIDE = 28


# TFDS has a builder of this name, which registers when somebody imports it.
class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Images `[28, 28, 1]` and labels 0 to 9, in the order of the files.

  The same images as TFDS's data set of this name, which has another order.
  """

  name = NAME
  VERSION = tfds.core.Version("1.0.0")
  # {split: (images, labels)}, that are read before anything is written.
  arrays: Mapping[str, tuple[np.ndarray, np.ndarray]] = {}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      homepage="https://github.com/zalandoresearch/fashion-mnist",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=(_SIDE, _SIDE, 1), encoding_format="png"
          ),
          "label": tfds.features.ClassLabel(names=CLASSES),
        }
      ),
      supervised_keys=("image", "label"),
      # Keeps the order of the files.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {
      split: self._generate_examples(*arrays)
      for split, arrays in self.arrays.items()
    }

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
      # Of encoded bytes TFDS makes examples without TensorFlow.
      encoded = io.BytesIO(decode.encode_image(image[..., None]))
      yield index, {"image": encoded, "label": int(label)}


def prepare(data_dir: epath.Path) -> None:
  """Writes the data set below `data_dir`, unless one of its name is there.

  So TFDS's own, if somebody prepared it, stays what the name means.

  Args:
    data_dir: where data sets are.

  Raises:
    ValueError: if they are not there, or are damaged.
  """
  if prepared.list_versions(data_dir / NAME):
    return
  arrays = {split: load(split) for split in _FILES}
  builder = FashionMnist(data_dir=data_dir, file_format="array_record")
  builder.arrays = arrays
  built_in.prepare(builder)


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads the files of a split.

  Args:
    split: "train" or "test".

  Returns:
    (images, labels): uint8 [number, 28, 28] and uint8 [number].

  Raises:
    ValueError: if they are not there, or are damaged.
  """
  images, labels = (FOLDER / name for name in _FILES[split])
  for path in (images, labels):
    if not path.exists():
      raise ValueError(
        f"name: {NAME!r} is not prepared, and {path} is not there to prepare it"
        " of: install Debian's package with apt-get install"
        " dataset-fashion-mnist, or prepare TFDS's own data set with tfds build"
        f" {NAME} --file_format array_record."
      )
  pixels, classes = _read(images, 3), _read(labels, 1)
  if pixels.shape[1:] != (_SIDE, _SIDE) or len(pixels) != len(classes):
    raise ValueError(
      f"{images} has images {pixels.shape} and {labels} {len(classes)} labels;"
      f" they must be as many, of {_SIDE} x {_SIDE} pixels."
    )
  if classes.size and classes.max() >= len(CLASSES):
    raise ValueError(
      f"{labels} has the label {classes.max()}; they are 0 to"
      f" {len(CLASSES) - 1}."
    )
  return pixels, classes


def _read(path: epath.Path, axes: int) -> np.ndarray:
  """Reads a file of bytes in IDX format, as MNIST's."""
  try:
    data = gzip.decompress(path.read_bytes())
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(f"{path} is damaged: {error}.") from error
  # Two zeros, the type of unsigned bytes, the number of axes; their sizes.
  head, start = bytes((0, 0, 8, axes)), 4 + 4 * axes
  if data.startswith(head) and len(data) >= start:
    shape = np.frombuffer(data[4:start], ">u4").astype(int)
    if len(data) == start + shape.prod():
      return np.frombuffer(data[start:], np.uint8).reshape(shape)
  raise ValueError(
    f"{path} is damaged: it has {len(data)} bytes, which begin with"
    f" {data[:start].hex()}, and must be an IDX file of {axes} axes."
  )
