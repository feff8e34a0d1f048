"""A pair model that tells distances, and networks that learn its biases.

A toy of AlphaFold's kind, for "FlashBias" (arXiv 2505.12044): the networks are
a second run, on a frozen model.

  python train.py --config=configs/pairs.py --workdir=runs/pairs
  python train.py --config=configs/pairs.py:networks --workdir=runs/networks \\
    --config.init.weights=runs/pairs

Variants:
- `pairs` (the default): the model, trained with its true biases.
- `networks`: factors of rank 8 imitate them. Evaluation is with the factors;
  --config.model.bias=none or pair of eval.py shows what they are worth.
"""

import ml_collections

from configs import common

VARIANTS = ("pairs", "networks")


def get_config(variant: str = "pairs") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("pairs", variant, VARIANTS)
  config = common.get_config("pair_completion")
  config.data.options.update(points=16, space=1, reach=0.2, noise=0.02)
  config.data.train_examples = 20_000
  config.data.eval_examples = 200
  config.batch_size = 16
  config.eval_batch_size = 50
  common.schedule(config, steps=400, every=400, rates=(4e-3, 1e-4))
  config.optimizer.clip_norm = 1.0
  if variant == "networks":
    config.imitate = True
    config.model.bias = "factors"
    config.model.bias_rank = 8
    config.model.hidden = 128
    common.schedule(config, steps=800, every=800)
    # As in the paper, but that the average is of 0.99 in so few steps.
    config.optimizer.learning_rate = 3e-3
    config.ema.decay = 0.99
  return config
