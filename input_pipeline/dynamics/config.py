"""The fields of `config.data` for trajectories of dynamical systems."""

import ml_collections

from input_pipeline import checks, stream

ORDERS = ("shuffled", "consecutive")


def default_config() -> ml_collections.ConfigDict:
  """Windows of Lorenz's ring of 40 numbers."""
  config = ml_collections.ConfigDict()
  config.system = "lorenz96"  # A key of `systems.SYSTEMS`.
  # Fields of the system that are not its defaults.
  config.options = ml_collections.ConfigDict()
  config.seed = 0  # Of the states at the beginning; not that of the run.
  # Trajectories to train on, and states of each.
  config.trajectories = 32
  config.states = 1000
  # "shuffled": windows from anywhere, for models that begin anew in each.
  # "consecutive": each row of a batch goes on where it was in the batch before,
  # for models that carry a state; batch_size divides the trajectories then.
  config.order = "shuffled"
  # States that an example gives to a model, and those behind the next one,
  # which a model is to reach from its own output.
  config.length = 16
  config.ahead = 0
  # Trajectories to evaluate on, each with states to begin with, which the model
  # is given, and states that it is to forecast.
  config.eval_examples = 100
  config.warm_up = 100
  config.horizon = 300
  # Threads that read ahead, and processes with as many each; see
  # `input_pipeline.stream`.
  config.num_threads = 1
  config.num_workers = 0
  return config


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for fields of which no examples can be made.

  Options are checked by their system.
  """
  stream.check_reading(config)
  for field in ("seed", "ahead"):
    checks.check_integer(field, config[field], 0)
  for field in (
    "trajectories",
    "states",
    "length",
    "eval_examples",
    "warm_up",
    "horizon",
  ):
    checks.check_integer(field, config[field], 1)
  if config.order not in ORDERS:
    raise ValueError(
      f"order is {config.order!r}, but must be one of {', '.join(ORDERS)}."
    )
  needed = config.length + 1 + config.ahead
  if config.states < needed:
    raise ValueError(
      f"states is {config.states}, but an example has {needed}: length "
      f"{config.length}, the next one, and {config.ahead} ahead."
    )
