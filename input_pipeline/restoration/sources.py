"""Where images come from: packages, folders and TFDS data sets."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from input_pipeline import prepared
from input_pipeline.images import decode
from input_pipeline.images import source as image_source
from input_pipeline.restoration import folder, photographs
from input_pipeline.restoration.config import FOLDER

PHOTOGRAPHS = "photographs"


class Pair(NamedTuple):
  """A whole image, degraded and clean.

  Attributes:
    name: of the image, without ending.
    degraded: uint8 [height, width, 3].
    clean: uint8 [scale * height, scale * width, 3].
    degradation: as written in the config; "" for images that came degraded.
  """

  name: str
  degraded: np.ndarray
  clean: np.ndarray
  degradation: str = ""


class Source(Protocol):
  """Images of a split by number.

  Attributes:
    paired: whether there are degraded images too.
  """

  paired: bool

  def __len__(self) -> int:
    """How many there are."""

  def name(self, index: int) -> str:
    """What an image is called, for tables and files."""

  def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Clean uint8 [H, W, 3], and degraded [h, w, 3], or None without pairs.

    Raises:
      DamagedImageError: if the image cannot be decoded.
    """


@dataclasses.dataclass(frozen=True)
class Records:
  """A split of a TFDS data set; a `Source`."""

  source: image_source.Source
  paired: bool

  def __len__(self) -> int:
    return len(self.source)

  def name(self, index: int) -> str:
    """See `Source`."""
    return f"{self.source.split}_{index:05}"

  def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """See `Source`."""
    record = self.source.read(index)
    try:
      if not self.paired:
        return decode.decode_image(record["image"]), None
      return tuple(decode.decode_image(record[name]) for name in ("hr", "lr"))
    except decode.DamagedImageError as error:
      raise decode.DamagedImageError(
        f"Damaged image: {self.source.describe(index)}: {error}"
      ) from error


def open_source(config: ml_collections.ConfigDict, stream_name: str) -> Source:
  """Opens the images to train on or to evaluate.

  Args:
    config: `config.data`, checked by `config.check_config`.
    stream_name: "train" or "eval".

  Raises:
    ValueError: for images that are not there, or pairs of other sizes.
  """
  if config.name == PHOTOGRAPHS:
    return photographs.Photographs(stream_name)
  if config.name == FOLDER:
    if stream_name == "eval":
      return folder.open_folder(config.folder, "folder", config.scale)
    return folder.open_folder(
      config.train_folder, "train_folder", config.scale, config.patch_size
    )
  builder = prepared.load_builder(
    config.name,
    prepared.get_data_dir(config.data_dir),
    (FOLDER, PHOTOGRAPHS),
  )
  return _open_records(config.name, config[f"{stream_name}_split"], builder)


def _open_records(
  name: str, split: str, builder: tfds.core.DatasetBuilder
) -> Records:
  features = builder.info.features
  kinds = {
    key: isinstance(features[key], tfds.features.Image) for key in features
  }
  paired = bool(kinds.get("hr") and kinds.get("lr"))
  if not paired and not kinds.get("image"):
    raise ValueError(
      f"name: {name!r} needs Images called lr and hr, or one called image, but "
      f"its features are {', '.join(features)}."
    )
  wanted: Sequence[str] = ("hr", "lr") if paired else ("image",)
  records, files = image_source.open_records(
    name, split, builder, {key: tfds.decode.SkipDecoding() for key in wanted}
  )
  if not len(records):
    raise ValueError(f"split {split!r} of {name!r} has no examples.")
  source = image_source.Source(
    name=name,
    split=split,
    class_names=(),
    image_shape=tuple(features[wanted[0]].shape),
    records=records,
    files=files,
  )
  return Records(source, paired)
