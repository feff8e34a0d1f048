"""The configs of runs that exist, also of those older than some fields."""

import ml_collections

from configs import common
from training import records


def load_config(workdir: str) -> ml_collections.ConfigDict:
  """Reads a run's config; fields that it did not have have their defaults.

  Raises:
    ValueError: if there is no run in `workdir`.
  """
  return records.load_config(workdir, common.get_config())


def check_workdir(
  workdir: str, config: ml_collections.ConfigDict, *, override: bool
) -> None:
  """Compares a config with that of the run in `workdir`, if there is one.

  Raises:
    ConfigMismatchError: if they differ and not `override`.
    ValueError: if the workdir cannot be created.
  """
  records.check_workdir(
    workdir, config, defaults=common.get_config(), override=override
  )
