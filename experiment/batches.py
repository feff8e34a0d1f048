"""This process's rows of the batches of a config, for both programs."""

from typing import Any

import jax
import ml_collections

import input_pipeline


def create_train_batches(config: ml_collections.ConfigDict) -> Any:
  """This process's rows of an endless stream of training batches."""
  return input_pipeline.train_iterator(
    config.data,
    seed=config.seed,
    global_batch_size=config.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def create_eval_batches(config: ml_collections.ConfigDict) -> Any:
  """This process's rows of the evaluation split; can be iterated again."""
  return input_pipeline.eval_batches(
    config.data,
    batch_size=config.eval_batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
