"""Clusters of atoms with energies and forces, made up of a seed.

The same functions as the other rooms have, of `config.data`, see
`default_config`.
"""

from input_pipeline.clusters.config import default_config
from input_pipeline.clusters.pipeline import (
  ClustersInfo,
  dataset_info,
  eval_batches,
  num_train_examples,
  train_iterator,
)

__all__ = [
  "ClustersInfo",
  "dataset_info",
  "default_config",
  "eval_batches",
  "num_train_examples",
  "train_iterator",
]
