"""Finds prepared TFDS data sets in a folder.

TFDS can look them up by name too, but then it imports the code that generates
the data set, which may import TensorFlow or ask the network. Reading needs
nothing but the folder `name[/config]/version` with its features.json.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

import storage

_FORMAT = tfds.core.FileFormat.ARRAY_RECORD.value
_FEATURES = "features.json"


def get_data_dir(data_dir: str | None) -> epath.Path:
  """`data_dir`, or else $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return storage.path(data_dir or default)


def load_builder(
  name: str, data_dir: epath.Path, built_in: Sequence[str]
) -> tfds.core.DatasetBuilder:
  """Opens a prepared data set.

  Args:
    name: "mnist", "name/config", "mnist:3.0.1" or "name/config:1.0.0". Without
      a version it is the newest one.
    data_dir: where data sets are.
    built_in: names that need no preparation, for the error message.

  Raises:
    ValueError: if it is not there, is one of several configs, or is in a
      format without random access; the message says what to do.
  """
  path, _, version = name.partition(":")
  folders = list_versions(data_dir / path)
  if version:
    folders = [folder for folder in folders if folder.name == version]
  if not folders:
    raise ValueError(_describe_absence(name, path, data_dir, built_in))
  builder = tfds.builder_from_directory(folders[-1])
  formats = _list_formats(builder)
  if _FORMAT not in formats:
    raise ValueError(
      f"name: {name!r} in {folders[-1]} is stored as {', '.join(formats)},"
      f" which cannot be read at random. Convert it once to {_FORMAT}."
      f" {_describe_conversion(path, data_dir, folders[-1])}"
    )
  # A folder may hold both, and then the other one may be the default.
  builder.info.set_file_format(
    _FORMAT, override=True, override_if_initialized=True
  )
  return builder


def resolve_split(
  name: str, split: str, infos: Mapping[str, tfds.core.SplitInfo]
) -> Sequence[Any]:
  """Splits and slices of a string as TFDS writes them.

  Raises:
    ValueError: if the data set `name`, which has `infos`, lacks one.
  """
  try:
    instruction = tfds.core.ReadInstruction.from_spec(split)
    return instruction.to_absolute(dict(infos))
  except (AssertionError, ValueError) as error:
    sizes = [f"{k} ({info.num_examples})" for k, info in infos.items()]
    raise ValueError(
      f"split {split!r} of {name!r} cannot be read: {error} Its splits:"
      f" {', '.join(sizes)}. Slices are written 'train[:90%]'."
    ) from error


def is_readable(folder: epath.Path) -> bool:
  """Whether a prepared version has files with random access."""
  return _FORMAT in _list_formats(tfds.builder_from_directory(folder))


def _list_formats(builder: tfds.core.DatasetBuilder) -> list[str]:
  return sorted(f.value for f in builder.info.available_file_formats())


def list_versions(folder: epath.Path) -> list[epath.Path]:
  """Prepared versions directly below `folder`, the oldest first."""
  versions = [
    child
    for child in (folder.iterdir() if folder.is_dir() else ())
    if tfds.core.Version.is_valid(child.name) and (child / _FEATURES).exists()
  ]
  return sorted(versions, key=lambda child: tfds.core.Version(child.name))


def _list_versions_without_features(folder: epath.Path) -> list[epath.Path]:
  return [
    child
    for child in sorted(_list_folders(folder))
    if tfds.core.Version.is_valid(child.name)
    and not (child / _FEATURES).exists()
  ]


def list_names(data_dir: epath.Path) -> list[str]:
  """Names, with their configs, of all prepared data sets in a folder."""
  names = []
  for folder in sorted(_list_folders(data_dir)):
    if list_versions(folder):
      names.append(folder.name)
    for config in sorted(_list_folders(folder)):
      if list_versions(config):
        names.append(f"{folder.name}/{config.name}")
  return names


def _list_folders(folder: epath.Path) -> list[epath.Path]:
  if not folder.is_dir():
    return []
  return [child for child in folder.iterdir() if child.is_dir()]


def _describe_absence(
  name: str, path: str, data_dir: epath.Path, built_in: Sequence[str]
) -> str:
  """Why a name was not found, and what to do."""
  message = f"name: {name!r} is not prepared in {data_dir}."
  versions = [folder.name for folder in list_versions(data_dir / path)]
  if versions:
    return f"{message} There are its versions {', '.join(versions)}."
  if list_versions(data_dir) or (data_dir / _FEATURES).exists():
    return f"{message} This is a data set itself: give the folder it is in."
  if old := _list_versions_without_features(data_dir / path):
    return (
      f"{message} {', '.join(map(str, old))} lacks {_FEATURES}: either its copy"
      " is not whole, or a TFDS too old to write this file prepared it."
    )
  names = sorted({*built_in, *list_names(data_dir)})
  configs = [n for n in names if n.startswith(f"{path}/")]
  if configs:
    return f"{message} Choose one of its configs: {', '.join(configs)}."
  near = difflib.get_close_matches(path, names, n=3)
  if near:
    message += f" Did you mean {' or '.join(near)}?"
  return (
    f"{message} There are: {', '.join(names)}."
    f" {_describe_preparation(path, data_dir)}"
  )


def _describe_conversion(
  path: str, data_dir: epath.Path, folder: epath.Path
) -> str:
  if path.startswith("imagenet"):
    return _describe_preparation(path, data_dir)
  return (
    "Run python -m tensorflow_datasets.scripts.convert_format"
    f" --out_file_format {_FORMAT} --dataset_version_dir"
    f" {storage.quote(folder)} (needs tensorflow and apache-beam)."
  )


def _describe_preparation(path: str, data_dir: epath.Path) -> str:
  if path.startswith("imagenet"):
    return (
      f"Run python -m tools.prepare_imagenet --name={path}"
      f" --data_dir={storage.quote(data_dir)}, see docs/imagenet.md."
    )
  return (
    f"A data set of TFDS is prepared with: tfds build {path} --data_dir"
    f" {storage.quote(data_dir)} --file_format {_FORMAT}."
  )
