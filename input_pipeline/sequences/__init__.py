"""Sequences with labels that are made up, each from a number.

The same functions as the other rooms have, of `config.data`, see
`default_config`. What an example is says its source, see `sources`.
"""

from input_pipeline.sequences.config import default_config
from input_pipeline.sequences.pipeline import (
  SequencesInfo,
  dataset_info,
  eval_batches,
  num_train_examples,
  train_iterator,
)

__all__ = [
  "SequencesInfo",
  "dataset_info",
  "default_config",
  "eval_batches",
  "num_train_examples",
  "train_iterator",
]
