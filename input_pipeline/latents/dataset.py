"""Latents on disk: in one folder a TFDS data set for each split of images.

Each split is whole or not there, since TFDS writes to a folder of its own and
renames it at the end. Splits have the names of those of the images, so slices
such as "train[:90%]" are the same examples.
"""

import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

import storage
from input_pipeline import prepared
from input_pipeline.images import source

_NAME = "latents"
FLIPPED = "moments_flipped"


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How images became latents: what all splits of a folder share.

  Attributes:
    model: name of the autoencoder's model.
    autoencoder: where its weights were.
    fingerprint: of these weights.
    scale: factor that gives latents a deviation of about one.
    image_shape: height, width and channels of what was encoded.
    fields: of the image room's config, those that decided over the images.
  """

  model: str
  autoencoder: str
  fingerprint: str
  scale: float
  image_shape: tuple[int, int, int]
  fields: Mapping[str, Any]

  def to_json(self) -> dict[str, Any]:
    """What `from_json` makes the same of."""
    return dataclasses.asdict(self) | {"image_shape": [*self.image_shape]}

  @classmethod
  def from_json(cls, record: Mapping[str, Any]) -> "Encoding":
    """Of what `to_json` returned."""
    shape = tuple(record["image_shape"])
    return cls(**{**record, "image_shape": shape})


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder of latents.

  Attributes:
    path: of the folder.
    encoding: of all of its splits.
    builders: by split.
  """

  path: epath.Path
  encoding: Encoding
  builders: Mapping[str, tfds.core.DatasetBuilder]

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of the latents; moments have twice those."""
    builder = next(iter(self.builders.values()))
    height, width, moments = builder.info.features["moments"].shape
    return height, width, moments // 2

  def open_split(self, split: str) -> tuple[source.Source, str, bool]:
    """Opens a split, or a slice of one.

    Returns:
      The source of records moments, moments_flipped if they were stored, label
      and example, their place in the split of images; that split's name; and
      whether there are mirrored moments.

    Raises:
      ValueError: if there is no such split, it is empty or lacks files.
    """
    infos = {name: b.info.splits[name] for name, b in self.builders.items()}
    parts = prepared.resolve_split(str(self.path), split, infos)
    if len(parts) != 1:
      raise ValueError(
        f"split {split!r} of {str(self.path)!r} must not be a sum: latents "
        "are read from one split at a time."
      )
    name = parts[0].splitname
    builder = self.builders[name]
    records, files = source.open_records(str(self.path), split, builder)
    if not files:
      raise ValueError(f"split {split!r} of {str(self.path)!r} is empty.")
    opened = source.Source(
      name=str(self.path),
      split=split,
      class_names=tuple(builder.info.features["label"].names),
      image_shape=self.encoding.image_shape,
      records=records,
      files=files,
    )
    return opened, name, FLIPPED in builder.info.features


def find_splits(folder: epath.Path) -> dict[str, tfds.core.DatasetBuilder]:
  """The splits of a folder that are whole, by name; none if it is not there."""
  below = folder / _NAME
  names = [child.name for child in below.iterdir()] if below.is_dir() else []
  found = {}
  for name in sorted(names):
    if versions := prepared.list_versions(below / name):
      found[name] = tfds.builder_from_directory(versions[-1])
  return found


def encoding_of(builder: tfds.core.DatasetBuilder) -> Encoding:
  """How a split that `find_splits` returned was made."""
  return Encoding.from_json(builder.info.metadata)


def open_folder(path: str) -> Folder:
  """Opens what `write_split` wrote.

  Raises:
    ValueError: if there are no latents, or splits that were made in different
      ways.
  """
  folder = storage.path(path)
  builders = find_splits(folder)
  if not builders:
    raise ValueError(
      f"latents: {path!r} is no folder of latents (looked for "
      f"{storage.absolute(folder) / _NAME}/<split>/<version>/features.json). "
      "Make one with: python -m tools.encode_latents --config=<config of the "
      f"images> --weights=<autoencoder> --out={storage.quote(path)}."
    )
  encodings = {name: encoding_of(b) for name, b in builders.items()}
  (first, encoding), *others = encodings.items()
  for name, other in others:
    if difference := describe_difference(encoding, other):
      raise ValueError(
        f"latents: splits {first!r} and {name!r} of {path!r} were made in "
        f"different ways: {difference}. Delete one and encode it again."
      )
  return Folder(folder, encoding, builders)


def describe_difference(one: Encoding, other: Encoding) -> str:
  """Says in which field two encodings differ; "" if in none.

  Where the weights were does not count, if they are the same.
  """
  ours, theirs = one.to_json(), other.to_json()
  for name in ours:
    if name != "autoencoder" and ours[name] != theirs[name]:
      return f"{name} is {ours[name]!r} and {theirs[name]!r}"
  return ""


def write_split(
  folder: epath.Path,
  split: str,
  encoding: Encoding,
  class_names: Sequence[str],
  examples: Iterable[dict[str, Any]],
  *,
  moments_shape: tuple[int, int, int],
  dtype: np.dtype,
  flipped: bool,
) -> None:
  """Writes a split; killed, it leaves nothing that `find_splits` returns.

  Args:
    folder: of the latents.
    split: its name among the images.
    encoding: how they were made.
    class_names: by label.
    examples: dicts of moments [height, width, 2 channels] (means, then log
      variances), label, example, and moments_flipped if there are.
    moments_shape: that of each.
    dtype: that moments are stored in.
    flipped: whether mirrored moments are stored too.
  """
  moments = tfds.features.Tensor(
    shape=moments_shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES
  )
  features = {
    "moments": moments,
    "label": tfds.features.ClassLabel(names=list(class_names)),
    "example": np.int64,
  }
  if flipped:
    features[FLIPPED] = moments
  tfds.disable_progress_bar()
  with _silent(), tempfile.TemporaryDirectory() as download_dir:
    builder = _Latents(
      split, features, encoding.to_json(), examples, data_dir=folder
    )
    builder.download_and_prepare(
      download_dir=download_dir,
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )


class _Latents(tfds.core.GeneratorBasedBuilder):
  """Writes the examples that it is given."""

  name = _NAME
  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    split: str,
    features: dict[str, Any],
    metadata: dict[str, Any],
    examples: Iterable[dict[str, Any]],
    *,
    data_dir: epath.Path,
  ):
    self._split, self._features = split, features
    self._metadata, self._examples = metadata, examples
    config = tfds.core.BuilderConfig(name=split)
    super().__init__(
      data_dir=data_dir, config=config, file_format="array_record"
    )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Latents of images.",
      features=tfds.features.FeaturesDict(self._features),
      metadata=tfds.core.MetadataDict(self._metadata),
      # Keeps the order of the images.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {self._split: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(self._examples)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Without TFDS's messages, which are of downloads."""
  with contextlib.redirect_stdout(io.StringIO()):
    yield
