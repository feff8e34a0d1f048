"""The fields of `config.data` for clusters of atoms."""

import ml_collections

from input_pipeline import checks, stream
from input_pipeline.clusters import energies


def default_config() -> ml_collections.ConfigDict:
  """Small clusters of Lennard-Jones atoms."""
  config = ml_collections.ConfigDict()
  config.potential = "lennard_jones"  # A key of `energies.POTENTIALS`.
  # Fields of the potential that are not its defaults.
  config.options = ml_collections.ConfigDict()
  config.seed = 0  # Of the clusters; not that of the run.
  config.train_examples = 1000
  config.eval_examples = 200
  config.atoms = (8, 13)  # Of a cluster, least and most.
  # Steps downhill from where atoms were dropped, least and most, and the
  # deviation of what is added to each coordinate then.
  config.relaxation = (50, 200)
  config.jitter = 0.03
  config.rotate = True  # Whether training turns each cluster at random.
  # Threads that read ahead, and processes with as many each; see
  # `input_pipeline.stream`.
  config.num_threads = 1
  config.num_workers = 0
  return config


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for fields of which no examples can be made."""
  stream.check_reading(config)
  energies.create(config.potential, config.options.to_dict())
  checks.check_integer("seed", config.seed, 0)
  for field in ("train_examples", "eval_examples"):
    checks.check_integer(field, config[field], 1)
  for field, least in (("atoms", 2), ("relaxation", 0)):
    bounds = config[field]
    if len(bounds) != 2:
      raise ValueError(
        f"{field} is {tuple(bounds)}, but must be two numbers, the least and "
        "the most."
      )
    for bound in bounds:
      checks.check_integer(field, bound, least)
    if bounds[0] > bounds[1]:
      raise ValueError(
        f"{field} is {tuple(bounds)}, but the least must not be above the most."
      )
  checks.check_number("jitter", config.jitter)
