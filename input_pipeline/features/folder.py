"""Features on disk: a folder for each split, with an array for each map.

A split is whole once its features.json is there, which is written last.
"""

import dataclasses
import io
import json
import pathlib
import tempfile
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

import storage

_RECORD = "features.json"
DTYPES = ("float16", "float32")


@dataclasses.dataclass(frozen=True)
class Record:
  """How the features of a split were made.

  Attributes:
    shapes: of each map of an image, [rows, columns, width].
    dtype: one of DTYPES.
    class_names: by label.
    made: of what and by what, as in JSON: compared as a whole.
    examples: in the split.
  """

  shapes: tuple[tuple[int, ...], ...]
  dtype: str
  class_names: tuple[str, ...]
  made: Mapping[str, Any]
  examples: int = 0


@dataclasses.dataclass(frozen=True)
class Split:
  """An opened split: `record`, `maps` [examples, ...] and `labels`."""

  record: Record
  maps: Sequence[np.ndarray]
  labels: np.ndarray


def find_record(path: str, split: str) -> Record | None:
  """The record of a split; None if it is not there, or not whole."""
  file = _place(path, split) / _RECORD
  if not file.exists():
    return None
  fields = json.loads(storage.read_bytes(file))
  fields["shapes"] = tuple(map(tuple, fields["shapes"]))
  fields["class_names"] = tuple(fields["class_names"])
  return Record(**fields)


def read_record(path: str, split: str) -> Record:
  """The record of a split.

  Raises:
    ValueError: if it is not there.
  """
  record = find_record(path, split)
  if record is None:
    raise ValueError(
      f"features: {path!r} has no split {split!r} (looked for "
      f"{storage.absolute(_place(path, split) / _RECORD)}). Make it with: "
      f"python -m tools.cache_features --config=... --out={storage.quote(path)}"
    )
  return record


def open_split(path: str, split: str) -> Split:
  """Opens a split; a local one is read as it is asked for.

  Raises:
    ValueError: if it is not there, or its arrays do not fit its record.
  """
  record, place = read_record(path, split), _place(path, split)
  names = [f"map_{i}.npy" for i in range(len(record.shapes))]
  *maps, labels = (_load(place / name) for name in (*names, "label.npy"))
  for name, array, shape in zip(
    (*names, "label.npy"), (*maps, labels), (*record.shapes, ()), strict=True
  ):
    if array.shape[1:] != shape or len(array) < record.examples:
      raise ValueError(
        f"features: {name} of split {split!r} in {path!r} has shape "
        f"{array.shape}, but features.json says {record.examples} of {shape}: "
        "delete the split and make it again."
      )
  count = record.examples
  return Split(record, [array[:count] for array in maps], labels[:count])


def write_split(
  path: str,
  split: str,
  record: Record,
  batches: Iterable[tuple[Sequence[np.ndarray], np.ndarray]],
  *,
  most: int,
) -> Record:
  """Writes a split.

  Args:
    path: of the folder.
    split: its name.
    record: without `examples`.
    batches: maps [rows, ...], one array for each of `record.shapes`, and labels
      int [rows].
    most: no fewer than the examples of all batches.

  Returns:
    The record with the examples that there were.

  Raises:
    ValueError: for values that `record.dtype` cannot hold.
  """
  place = _place(path, split)
  if storage.is_remote(place):
    with tempfile.TemporaryDirectory() as local:
      count = _write(pathlib.Path(local), record, batches, most)
      storage.upload(local, place)
  else:
    place.mkdir(parents=True, exist_ok=True)
    count = _write(pathlib.Path(place), record, batches, most)
  record = dataclasses.replace(record, examples=count)
  text = json.dumps(dataclasses.asdict(record), indent=2)
  storage.write_whole(place / _RECORD, text)
  return record


def _write(folder, record, batches, most) -> int:
  arrays = [
    np.lib.format.open_memmap(
      folder / f"map_{i}.npy", "w+", np.dtype(record.dtype), (most, *shape)
    )
    for i, shape in enumerate(record.shapes)
  ]
  labels = np.zeros(most, np.int32)
  count = 0
  for maps, batch_labels in batches:
    end = count + len(batch_labels)
    for array, new in zip(arrays, maps, strict=True):
      with np.errstate(over="ignore"):
        array[count:end] = new
      if not np.isfinite(array[count:end]).all():
        raise ValueError(
          f"the features of examples {count} to {end - 1} are not finite in "
          f"{record.dtype}: try --dtype=float32, or other weights."
        )
    labels[count:end] = batch_labels
    count = end
  for array in arrays:
    array.flush()
  np.save(folder / "label.npy", labels)
  return count


def _place(path: str, split: str) -> epath.Path:
  """Where a split is, whose name may be a slice as "train[:90%]"."""
  return storage.path(path) / urllib.parse.quote(split, safe="")


def _load(path: epath.Path) -> np.ndarray:
  if storage.is_remote(path):
    return np.load(io.BytesIO(storage.read_bytes(path)))
  return np.load(path, mmap_mode="r")
