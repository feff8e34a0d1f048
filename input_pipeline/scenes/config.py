"""The fields of `config.data` for scenes of shapes."""

import ml_collections

from input_pipeline import checks, stream
from input_pipeline.scenes import shapes


def default_config() -> ml_collections.ConfigDict:
  """The source domain, with enough scenes to learn shapes."""
  config = ml_collections.ConfigDict()
  config.domain = "source"  # Of `shapes.DOMAINS`.
  config.image_size = 64
  config.most_objects = 3  # In a scene; there is one at least.
  config.train_examples = 2000  # Of an epoch; the next ones have the same.
  config.eval_examples = 200
  # Threads that read ahead, and processes with as many each; see
  # `input_pipeline.stream`.
  config.num_threads = 1
  config.num_workers = 0
  return config


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for fields of which no scenes can be made."""
  stream.check_reading(config)
  if config.domain not in shapes.DOMAINS:
    raise ValueError(
      f"domain is {config.domain!r}; it must be one of "
      f"{', '.join(shapes.DOMAINS)}."
    )
  checks.check_integer("image_size", config.image_size, 32)
  for name in ("most_objects", "train_examples", "eval_examples"):
    checks.check_integer(name, config[name], 1)
