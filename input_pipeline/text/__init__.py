"""Rows of tokens to train language models on, and to measure them with.

The same functions as the other rooms have, of `config.data`, see
`default_config`.
"""

from input_pipeline.text.config import default_config
from input_pipeline.text.pipeline import (
  TextInfo,
  dataset_info,
  eval_batches,
  num_train_examples,
  tokenizer_info,
  train_iterator,
)

__all__ = [
  "TextInfo",
  "dataset_info",
  "default_config",
  "eval_batches",
  "num_train_examples",
  "tokenizer_info",
  "train_iterator",
]
