"""The configs of runs that exist, also of those older than some fields."""

import ml_collections

import storage
import tasks
from configs import common
from training import records


def load_config(workdir: str) -> ml_collections.ConfigDict:
  """Reads a run's config; fields that it did not have have their defaults.

  Raises:
    ValueError: if there is no run in `workdir`.
  """
  return records.load_config(workdir, _defaults)


def load_trained(workdir: str) -> ml_collections.ConfigDict:
  """Reads a run's config, to be used with what else the run keeps.

  Raises:
    ValueError: if there is no run in `workdir`.
  """
  config = load_config(workdir)
  tasks.find(config.task).adopt(config, storage.path(workdir))
  return config


def check_workdir(
  workdir: str,
  config: ml_collections.ConfigDict,
  task: tasks.Task,
  *,
  override: bool,
) -> None:
  """Compares a config with that of the run in `workdir`, if there is one.

  Args:
    workdir: of the run.
    config: of this run.
    task: with what the run keeps beside the config.
    override: go on although the config differs.

  Raises:
    ConfigMismatchError: if they differ and not `override`, or if the run there
      was of other `files`.
    ValueError: if the workdir cannot be created.
  """
  records.check_workdir(workdir, config, defaults=_defaults, override=override)
  records.check_files(workdir, task.files())


def _defaults(config: dict) -> ml_collections.ConfigDict:
  """What fields are that a saved config may not have yet."""
  return common.get_config(config.get("task", "classification"))
