"""This process's rows of the batches of a config, for both programs."""

from typing import Any

import jax
import ml_collections

from input_pipeline import images
from training import hosts


def create_train_batches(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> Any:
  """This process's rows of an endless stream of training batches."""
  return images.train_iterator(
    config.data,
    seed=config.seed,
    global_batch_size=config.batch_size,
    rows=hosts.batch_rows(mesh, config.batch_size),
  )


def create_eval_batches(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> Any:
  """This process's rows of the evaluation split; can be iterated again."""
  return images.eval_batches(
    config.data,
    batch_size=config.eval_batch_size,
    rows=hosts.batch_rows(mesh, config.eval_batch_size),
  )
