"""Routers between full and streaming attention, trained on a frozen model.

The recipe is our own, in the shape of "Flux Attention" (arXiv 2604.07394): as
there, routers and multipliers alone or with queries, keys and values at a small
rate, targets of 1.0 for the near and 0.45 for the far task.

  python train.py --config=configs/sequences.py:near_and_far --workdir=runs/full
  python train.py --config=configs/routing.py --workdir=runs/routed \\
    --config.init.weights=runs/full

Variants:
- `routers` (the default): routers and multipliers.
- `projections`: also those of queries, keys and values, a fiftieth as fast.
"""

import ml_collections

from configs import common, sequences

VARIANTS = ("routers", "projections")


def get_config(variant: str = "routers") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("routing", variant, VARIANTS)
  trained = sequences.get_config("near_and_far")
  config = common.get_config("routing")
  for field in ("model", "data", "batch_size", "eval_batch_size"):
    config[field] = trained[field]
  config.model.mixers = ("routed",)
  config.model.window = 8
  config.model.mixer_options = {
    "routed": {"sink_tokens": 2, "pooled_tokens": 8}
  }
  config.train_for = "200 steps"
  config.evaluate_every = "100 steps"
  config.checkpoint.every = "100 steps"
  # The paper has 5e-4 for routers, twice that for multipliers.
  config.optimizer.learning_rate = 2e-3
  config.optimizer.learning_rate_rules = (("multipliers", 2.0),)
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.1
  config.optimizer.warmup = "20 percent"
  config.optimizer.clip_norm = 5.0
  if variant == "projections":
    config.routing.trained = ("router", "mixer/(query|key|value)")
    config.optimizer.learning_rate_rules = (
      ("multipliers", 2.0),
      ("mixer/(query|key|value)", 0.02),
    )
  return config
