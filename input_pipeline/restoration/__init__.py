"""Pairs of a degraded image and the clean one, for restoration.

Clean images are degraded as they are read (`degradations`), or a folder has
both. Training sees aligned patches; whole images of any size are evaluated one
by one (`eval_pairs`).
"""

from input_pipeline.restoration.config import default_config
from input_pipeline.restoration.imresize import imresize
from input_pipeline.restoration.pipeline import (
  DatasetInfo,
  dataset_info,
  eval_batches,
  eval_pairs,
  num_eval_pairs,
  num_train_examples,
  train_iterator,
)
from input_pipeline.restoration.sources import Pair

__all__ = [
  "DatasetInfo",
  "Pair",
  "dataset_info",
  "default_config",
  "eval_batches",
  "eval_pairs",
  "imresize",
  "num_eval_pairs",
  "num_train_examples",
  "train_iterator",
]
