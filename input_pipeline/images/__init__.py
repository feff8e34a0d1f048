"""Images with labels, from TFDS through Grain: what a training loop needs."""

from input_pipeline.images.config import default_config
from input_pipeline.images.decode import DamagedImageError
from input_pipeline.images.pipeline import (
  DatasetInfo,
  dataset_info,
  eval_batches,
  eval_reader,
  num_train_examples,
  present_classes,
  train_iterator,
  train_reader,
)

__all__ = [
  "DamagedImageError",
  "DatasetInfo",
  "dataset_info",
  "default_config",
  "eval_batches",
  "eval_reader",
  "num_train_examples",
  "present_classes",
  "train_iterator",
  "train_reader",
]
