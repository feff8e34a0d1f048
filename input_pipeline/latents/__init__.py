"""What image generators learn from: pixels, or latents, and labels or text."""

from input_pipeline.latents.config import default_config
from input_pipeline.latents.pipeline import (
  DatasetInfo,
  dataset_info,
  encoded_fields,
  eval_batches,
  num_train_examples,
  train_iterator,
)

__all__ = [
  "DatasetInfo",
  "dataset_info",
  "default_config",
  "encoded_fields",
  "eval_batches",
  "num_train_examples",
  "train_iterator",
]
