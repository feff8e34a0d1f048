"""Makes ArrayRecord files of a data set that TFDS prepared as TFRecord.

TFDS has a script for this too, but it imports Apache Beam, and if it is killed
between the last shard and the metadata it never finishes.
"""

import json

import tensorflow_datasets as tfds
import tqdm
from etils import epath

_SOURCE = tfds.core.FileFormat.TFRECORD
_TARGET = tfds.core.FileFormat.ARRAY_RECORD


def convert(folder: epath.Path) -> None:
  """Adds ArrayRecord files beside the TFRecord files of `folder`.

  Shards are written under another name and then renamed, and the metadata
  mention the new format last: it may be killed at any time, and goes on with
  the first shard that is missing.

  Args:
    folder: of one version, such as `data_dir/imagenet2012/5.1.0`.

  Raises:
    ValueError: if the data set is in another format, or a file is missing or
      damaged.
  """
  builder = tfds.builder_from_directory(folder)
  if builder.info.file_format != _SOURCE:
    raise ValueError(
      f"{folder} is stored as {builder.info.file_format.value}, of which"
      f" {_TARGET.value} cannot be made here; only of {_SOURCE.value}."
    )
  splits = builder.info.splits.values()
  shards = [
    (source, _target(split, i), split.shard_lengths[i])
    for split in splits
    for i, source in enumerate(split.filepaths)
  ]
  missing = [str(source) for source, _, _ in shards if not source.exists()]
  if missing:
    raise ValueError(
      f"{len(missing)} files of {len(shards)} are missing, the first is"
      f" {missing[0]}. Copy the data set again."
    )
  for source, target, length in tqdm.tqdm(shards, unit=" shards"):
    if not target.exists():
      _convert_shard(source, target, length)
  _add_format(folder)


def _target(split: tfds.core.SplitInfo, index: int) -> epath.Path:
  template = split.filename_template.replace(
    filetype_suffix=_TARGET.file_suffix
  )
  return template.sharded_filepath(
    shard_index=index, num_shards=split.num_shards
  )


def _convert_shard(source: epath.Path, target: epath.Path, length: int) -> None:
  # TensorFlow is needed for this alone.
  from tensorflow.errors import DataLossError
  from tensorflow_datasets.core import file_adapters

  adapters = file_adapters.ADAPTER_FOR_FORMAT
  count = 0

  def read():
    nonlocal count
    for record in adapters[_SOURCE].make_tf_data(source):
      yield count, record.numpy()
      count += 1

  partial = target.parent / f"incomplete.{target.name}"
  try:
    adapters[_TARGET].write_examples(partial, read())
  except DataLossError as error:
    raise ValueError(
      f"{source} is damaged or cut short: {error.message}. Copy it again."
    ) from error
  else:
    if count != length:
      raise ValueError(
        f"{source} has {count} records instead of {length}. Copy it again."
      )
    partial.rename(target)
  finally:
    partial.unlink(missing_ok=True)


def _add_format(folder: epath.Path) -> None:
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text())
  formats = info.setdefault("alternativeFileFormats", [])
  if _TARGET.value in formats:
    return
  formats.append(_TARGET.value)
  partial = folder / "incomplete.dataset_info.json"
  partial.write_text(json.dumps(info, indent=2))
  partial.replace(path)
