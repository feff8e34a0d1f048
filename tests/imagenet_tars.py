"""Small tar files with the structure, and the oddities, of ImageNet's."""

import io
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# Images of each class. Among them are two that TFDS knows by their names: one
# in CMYK, and one that is a PNG.
TRAIN = {
  "n01440764": ("n01440764_10026.JPEG", "n01440764_10027.JPEG"),
  "n01739381": ("n01739381_1309.JPEG",),
  "n02105855": (
    "n02105855_2933.JPEG",
    "n02105855_10.JPEG",
    "n02105855_11.JPEG",
  ),
}
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"
VALIDATION = tuple(f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 9))


def synsets() -> list[str]:
  """Names of the classes, by label."""
  return _lines("labels.txt")


def validation_synsets() -> list[str]:
  """The class of each image for validation, in the order of their names."""
  return _lines("validation_labels.txt")


def _lines(name: str) -> list[str]:
  return (
    tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()
  )


def encode(name: str) -> bytes:
  """An image of one colour, which differs between names.

  Sides differ too, as in photographs.
  """
  rng = np.random.default_rng(list(name.encode()))
  height, width = rng.integers(40, 60, 2)
  mode = "CMYK" if name == CMYK else "RGB"
  color = tuple(int(c) for c in rng.integers(0, 200, len(mode)))
  buffer = io.BytesIO()
  Image.new(mode, (int(width), int(height)), color).save(
    buffer, "PNG" if name == PNG else "JPEG"
  )
  return buffer.getvalue()


def write_train(manual_dir: Path, classes: dict[str, tuple] = TRAIN) -> Path:
  """Writes ILSVRC2012_img_train.tar, with a tar file of each class inside."""
  members = {
    f"{synset}.tar": _tar({name: encode(name) for name in names})
    for synset, names in classes.items()
  }
  path = manual_dir / "ILSVRC2012_img_train.tar"
  path.write_bytes(_tar(members))
  return path


def write_validation(
  manual_dir: Path, names: tuple[str, ...] = VALIDATION
) -> Path:
  """Writes ILSVRC2012_img_val.tar; as in the original, not in order."""
  path = manual_dir / "ILSVRC2012_img_val.tar"
  path.write_bytes(_tar({name: encode(name) for name in reversed(names)}))
  return path


def _tar(members: dict[str, bytes]) -> bytes:
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return buffer.getvalue()
