"""Scenes of simple shapes with a box around each, made up from a number.

The same functions as the other rooms have, of `config.data`, see
`default_config`. Two domains differ in colour and texture and not in shapes.
"""

from input_pipeline.scenes.config import default_config
from input_pipeline.scenes.pipeline import (
  ScenesInfo,
  dataset_info,
  eval_batches,
  num_train_examples,
  train_iterator,
)

__all__ = [
  "ScenesInfo",
  "dataset_info",
  "default_config",
  "eval_batches",
  "num_train_examples",
  "train_iterator",
]
