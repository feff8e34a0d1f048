"""This process's rows of the training batches of an experiment."""

from typing import Any

from experiment.build import Experiment
from training import hosts


def create_train_batches(experiment: Experiment) -> Any:
  """An endless stream of training batches, of those rows that are kept here."""
  config = experiment.config
  return experiment.task.room.train_iterator(
    config.data,
    seed=config.seed,
    global_batch_size=config.batch_size,
    rows=hosts.batch_rows(experiment.mesh, config.batch_size),
  )
