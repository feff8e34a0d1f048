"""The fields of `config.data` for sequences that are made up."""

import ml_collections

from input_pipeline import checks, stream


def default_config() -> ml_collections.ConfigDict:
  """Multi-query associative recall with the fields that it has."""
  config = ml_collections.ConfigDict()
  config.source = "mqar"  # A key of `sources.SOURCES`.
  # Fields of the source that are not its defaults, and those that are other
  # ones in evaluation, such as a greater length.
  config.options = ml_collections.ConfigDict()
  config.eval_options = ml_collections.ConfigDict()
  config.train_examples = 100_000  # Of an epoch; the next ones have the same.
  config.eval_examples = 1000
  # Threads that read ahead, and processes with as many each; see
  # `input_pipeline.stream`.
  config.num_threads = 1
  config.num_workers = 0
  return config


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for fields of which no examples can be made.

  Options are checked by their source.
  """
  stream.check_reading(config)
  checks.check_integer("train_examples", config.train_examples, 1)
  checks.check_integer("eval_examples", config.eval_examples, 1)
