"""Documents in prepared TFDS data sets, read without TensorFlow."""

from collections.abc import Iterator

import ml_collections
import tensorflow_datasets as tfds

from input_pipeline import prepared
from input_pipeline.text.documents import Document


def read(config: ml_collections.ConfigDict, split: str) -> Iterator[Document]:
  """The documents of one split of `config.files`.

  Args:
    config: `config.data`.
    split: in TFDS's syntax.

  Raises:
    ValueError: if the data set is not prepared or has no such split or text.
  """
  builder = prepared.load_builder(
    config.files, prepared.get_data_dir(config.data_dir), ()
  )
  features = dict(builder.info.features.items())
  if not isinstance(features.get(config.field), tfds.features.Text):
    raise ValueError(
      f"files: {config.files!r} has no Text called field={config.field!r}; its "
      f"features are {', '.join(sorted(features))}."
    )
  prepared.resolve_split(config.files, split, builder.info.splits)
  for index, record in enumerate(builder.as_data_source(split)):
    if record[config.field]:
      place = f"record {index} of {config.files!r}, split {split!r}"
      yield Document(place, record[config.field].decode("utf-8"))
