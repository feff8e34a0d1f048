"""Random access to the records of a data set's split."""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from input_pipeline import prepared
from input_pipeline.images import digits, fake, fashion_mnist

# By name, what writes a data set below a folder, unless it is there.
PREPARE = {"digits": digits.prepare, "fashion_mnist": fashion_mnist.prepare}
BUILT_IN = (*PREPARE, "fake")


class DamagedFileError(ValueError):
  """A file of records is damaged or cut short; the message names it."""


@dataclasses.dataclass(frozen=True)
class Source:
  """A split: `source[i]` is a dict of image (encoded bytes), label, and more.

  The label is an integer, or an array of any number of them if `many_labels`.

  Attributes:
    name: of the data set, as in the config.
    split: as in the config, such as "train[:90%]".
    class_names: a name for each label.
    image_shape: height, width and channels, None where images differ.
    records: the records, by index.
    files: for each run of records their number, the file, and the position in
      it of the run's first record. Empty for records in memory.
    label: the feature of the records with the label.
    many_labels: whether that is a sequence.
  """

  name: str
  split: str
  class_names: tuple[str, ...]
  image_shape: tuple[int | None, ...]
  records: Sequence[dict[str, Any]]
  files: tuple[tuple[int, str, int], ...] = ()
  label: str = "label"
  many_labels: bool = False

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """A record with its label; see `read`."""
    record = self.read(index)
    return {**record, "label": record[self.label]}

  def read(self, index: int) -> dict[str, Any]:
    """A record as it was written, which may have no label.

    Raises:
      DamagedFileError: if its file cannot be read there.
    """
    try:
      return self.records[index]
    except RuntimeError as error:
      raise DamagedFileError(
        f"{self.describe(index)} cannot be read: {error}. The file is damaged"
        " or cut short: copy it again, or delete its folder and prepare the"
        " data set again."
      ) from error

  def read_labels(self) -> np.ndarray:
    """The label of each record; reads all of them once.

    Raises:
      ValueError: if they have several.
    """
    if self.many_labels:
      raise ValueError(
        f"images of {self.name!r} may have several labels, called "
        f"{self.label}, where one each is needed."
      )
    return np.array([int(self[row]["label"]) for row in range(len(self))])

  def describe(self, index: int) -> str:
    """Says where a record is, for messages."""
    place = f"record {index} of {self.name!r}, split {self.split!r}"
    if not self.files:
      return f"{place} (in memory)"
    ends = list(itertools.accumulate(count for count, _, _ in self.files))
    run = bisect.bisect_right(ends, index)
    count, filename, first = self.files[run]
    position = first + index - (ends[run] - count)
    return f"{place} (record {position} in {filename})"


def open_source(config: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of the data set `config.name`; prepares it if it is small.

  Args:
    config: `config.data`, see `config.default_config`.
    split: in TFDS's syntax: "train", "train[:90%]", "train[10:20]+test".

  Raises:
    ValueError: for an unknown data set or split, or one that is not prepared,
      not in ArrayRecord files, empty, or not for classification; and if the
      files that a small one is made of are not there.
  """
  if config.name == "fake":
    source = _open_fake(config, split)
  else:
    data_dir = prepared.get_data_dir(config.data_dir)
    if config.name in PREPARE:
      PREPARE[config.name](data_dir)
    builder = prepared.load_builder(config.name, data_dir, BUILT_IN)
    source = _open_prepared(config.name, builder, split, config.label)
  if len(source) == 0:
    raise ValueError(f"split {split!r} of {config.name!r} has no examples.")
  return source


def _open_prepared(
  name: str, builder: tfds.core.DatasetBuilder, split: str, label_name: str
) -> Source:
  """Opens a split of any prepared data set for classification."""
  features = dict(builder.info.features.items())
  image, label = features.get("image"), features.get(label_name)
  many_labels = isinstance(label, tfds.features.Sequence)
  label = label.feature if many_labels else label
  if not (
    isinstance(image, tfds.features.Image)
    and isinstance(label, tfds.features.ClassLabel)
  ):
    raise ValueError(
      f"name: {name!r} needs an Image called image, and a ClassLabel or a"
      f" Sequence of them called {label_name} as config.data.label says, but"
      f" its features are {', '.join(features)}."
    )
  records, files = open_records(
    name, split, builder, {"image": tfds.decode.SkipDecoding()}
  )
  return Source(
    name=name,
    split=split,
    class_names=tuple(label.names),
    image_shape=tuple(image.shape),
    records=records,
    files=files,
    label=label_name,
    many_labels=many_labels,
  )


def open_records(
  name: str,
  split: str,
  builder: tfds.core.DatasetBuilder,
  decoders: Mapping[str, Any] | None = None,
) -> tuple[Sequence[dict[str, Any]], tuple[tuple[int, str, int], ...]]:
  """Opens a split of a prepared data set.

  Args:
    name: of the data set, for messages.
    split: in TFDS's syntax.
    builder: of the data set.
    decoders: of features that TFDS shall not decode as ever.

  Returns:
    `records` and `files` of a `Source`.

  Raises:
    ValueError: if there is no such split, or files of it are missing.
  """
  prepared.resolve_split(name, split, builder.info.splits)
  _check_files(name, split, builder)
  files = tuple(
    (instruction.take, str(instruction.filename), instruction.skip)
    for instruction in builder.info.splits[split].file_instructions
  )
  if not files:
    return (), ()
  return builder.as_data_source(split, decoders=decoders), files


def _check_files(
  name: str, split: str, builder: tfds.core.DatasetBuilder
) -> None:
  """Looks for the files of a split; lists their folder only once."""
  present = {path.name for path in builder.data_path.iterdir()}
  paths = [
    epath.Path(part.filename)
    for part in builder.info.splits[split].file_instructions
  ]
  absent = [path.name for path in paths if path.name not in present]
  if absent:
    raise ValueError(
      f"split {split!r} of {name!r} lacks {len(absent)} of {len(paths)} files"
      f" in {builder.data_path}, first of all {absent[0]}. Copy them again, or"
      " delete the folder and prepare the data set again."
    )


def _open_fake(config: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of the data set in memory."""
  fake.check(config.fake)
  sizes = {s: config.fake[f"{s}_examples"] for s in ("train", "test")}
  parts = prepared.resolve_split(
    "fake",
    split,
    {
      s: tfds.core.SplitInfo(name=s, shard_lengths=[size], num_bytes=0)
      for s, size in sizes.items()
    },
  )
  if len(parts) != 1:
    raise ValueError(f"split {split!r} of 'fake' must not be a sum.")
  (part,) = parts
  rows = range(sizes[part.splitname])[part.from_ : part.to]
  return Source(
    name="fake",
    split=split,
    class_names=tuple(f"class {i}" for i in range(config.fake.num_classes)),
    image_shape=tuple(config.fake.image_shape),
    records=fake.FakeRecords(config.fake, part.splitname, rows),
  )
