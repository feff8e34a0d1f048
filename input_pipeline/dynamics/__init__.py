"""Trajectories of chaotic systems, cut into examples.

The same functions as the other rooms have, of `config.data`, see
`default_config`. What moves says its system, see `systems`.
"""

from input_pipeline.dynamics.config import default_config
from input_pipeline.dynamics.pipeline import (
  DynamicsInfo,
  dataset_info,
  eval_batches,
  num_train_examples,
  train_iterator,
)

__all__ = [
  "DynamicsInfo",
  "dataset_info",
  "default_config",
  "eval_batches",
  "num_train_examples",
  "train_iterator",
]
