"""What probes learn from: images, or the maps that a frozen trunk made once."""

from input_pipeline.features.folder import Record, read_record, write_split
from input_pipeline.features.pipeline import (
  dataset_info,
  default_config,
  eval_batches,
  image_fields,
  num_train_examples,
  train_iterator,
)

__all__ = [
  "Record",
  "dataset_info",
  "default_config",
  "eval_batches",
  "image_fields",
  "num_train_examples",
  "read_record",
  "train_iterator",
  "write_split",
]
