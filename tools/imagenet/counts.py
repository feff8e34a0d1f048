"""Counts the examples of a prepared data set, and says if any are missing."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module

# Records that are in memory at once; one has about 110 kB.
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Expected:
  """What a whole split has.

  Attributes:
    images: in the split.
    classes: that have images.
    fewest: images of a class that has any.
    most: images of a class.
  """

  images: int
  classes: int
  fewest: int
  most: int


_VALIDATION = Expected(50_000, 1000, 50, 50)
EXPECTED = {
  "imagenet2012": {
    "train": Expected(1_281_167, 1000, 732, 1300),
    "validation": _VALIDATION,
  },
  "imagenet2012_real": {"validation": _VALIDATION},
  "imagenet_v2": {"test": Expected(10_000, 1000, 10, 10)},
  "imagenet_a": {"test": Expected(7_500, 200, 1, 7_500)},
  "imagenet_r": {"test": Expected(30_000, 200, 1, 30_000)},
  "imagenet_sketch": {"test": Expected(50_889, 1000, 1, 50_889)},
}


def count_classes(
  builder: tfds.core.DatasetBuilder, split: str, *, progress: bool = True
) -> np.ndarray:
  """Reads all records of a split once and counts those of each class.

  Args:
    builder: of a data set in ArrayRecord files, with a label called label or
      original_label.
    split: its name, without slices.
    progress: whether to show a bar.

  Returns:
    int64 `[num_classes]`.

  Raises:
    ValueError: if a file is missing, damaged, or has not as many records as
      the data set's metadata say; names the file.
  """
  features = builder.info.features
  key = _label_key(builder)
  counts = np.zeros(features[key].num_classes, np.int64)
  info = builder.info.splits[split]
  with tqdm.tqdm(
    total=info.num_examples, desc=split, unit=" images", disable=not progress
  ) as bar:
    for part in info.file_instructions:
      reader = _open(part)
      for start in range(0, part.examples_in_shard, _CHUNK):
        stop = min(start + _CHUNK, part.examples_in_shard)
        for record in _read(reader, part, start, stop):
          example = features.deserialize_example_np(
            record, decoders={"image": tfds.decode.SkipDecoding()}
          )
          counts[example[key]] += 1
        bar.update(stop - start)
  return counts


def class_names(builder: tfds.core.DatasetBuilder) -> list[str]:
  """By label."""
  return builder.info.features[_label_key(builder)].names


def _label_key(builder: tfds.core.DatasetBuilder) -> str:
  features = dict(builder.info.features.items())
  for key in ("label", "original_label"):
    if isinstance(features.get(key), tfds.features.ClassLabel):
      return key
  raise ValueError(
    f"name: {builder.name!r} is prepared, but its classes cannot be counted:"
    f" its features are {', '.join(features)}."
  )


def _open(part: Any) -> array_record_module.ArrayRecordReader:
  """Opens a shard, with a `ValueError` if it has not all of its records."""
  reader = array_record_module.ArrayRecordReader(str(part.filename))
  found = reader.num_records() if reader.ok() else 0
  if found != part.examples_in_shard:
    raise ValueError(
      f"{part.filename} has {found} readable records instead of"
      f" {part.examples_in_shard}: it is missing, damaged or cut short. Copy"
      " it again, or delete the folder it is in and prepare it again."
    )
  return reader


def _read(
  reader: array_record_module.ArrayRecordReader,
  part: Any,
  start: int,
  stop: int,
) -> list[bytes]:
  try:
    return reader.read(start, stop)
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f"{part.filename} is damaged between its records {start} and {stop}:"
      f" {error} Copy it again, or delete the folder it is in and prepare it"
      " again."
    ) from error


def check(
  name: str, counts: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> list[str]:
  """Compares counts with those of the whole data set.

  Args:
    name: of the data set, without config.
    counts: of each class, by split.
    class_names: by label.

  Returns:
    What is wrong, a line each: splits that are missing, sums, and classes.
  """
  faults = []
  for split, expected in EXPECTED.get(name, {}).items():
    if split not in counts:
      faults.append(f"{split}: is missing")
      continue
    found = counts[split]
    present = np.flatnonzero(found)
    if found.sum() != expected.images:
      faults.append(
        f"{split}: {found.sum():,} images instead of {expected.images:,}"
      )
    if len(present) != expected.classes:
      faults.append(
        f"{split}: {len(present)} classes instead of {expected.classes}"
      )
    # Where only some classes have images, which ones is the data set's choice.
    whole = expected.classes == len(found)
    odd = [
      f"{class_names[label]} ({found[label]})"
      for label in (range(len(found)) if whole else present)
      if not expected.fewest <= found[label] <= expected.most
    ]
    if odd:
      per_class = (
        f"{expected.fewest}"
        if expected.fewest == expected.most
        else f"{expected.fewest} to {expected.most}"
      )
      more = f" and {len(odd) - 20} more" if len(odd) > 20 else ""
      faults.append(
        f"{split}: not {per_class} images: {', '.join(odd[:20])}{more}"
      )
  return faults


def describe(counts: Mapping[str, np.ndarray]) -> list[str]:
  """A line for each split."""
  return [
    f"{split}: {found.sum():,} images, {np.count_nonzero(found):,} classes"
    f" with {found[found > 0].min():,} to {found.max():,} each"
    for split, found in counts.items()
  ]
