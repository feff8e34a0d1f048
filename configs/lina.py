"""LINA: images, a few tokens at a time, from linear attention.

  python train.py --config=configs/lina.py:digits --workdir=runs/lina

Variants:
- `digits` (the default): the embedded one, handwritten digits of 8x8 pixels by
  class, which trains in minutes on two cores.
- `test`: a few steps of a very small model, for tests and notebooks.
"""

import ml_collections

from configs import common
from models import lina

VARIANTS = ("digits", "test")


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("lina", variant, VARIANTS)
  config = common.get_config("masked_generation")
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.02
  config.optimizer.decay_exclude = (".*norm/(scale|bias)",)
  config.frozen = lina.FROZEN
  {"digits": _digits, "test": _test}[variant](config)
  return config


def _digits(config: ml_collections.ConfigDict) -> None:
  config.data.name = "digits"
  config.data.image_size = 8
  config.data.channels = 1
  config.data.train_transform = "resize(method=bilinear)"
  # 4 x 4 tokens of 2 x 2 pixels.
  config.model.update(
    dict(
      width=96,
      heads=4,
      connector_layers=2,
      encoder_layers=2,
      decoder_layers=2,
      flow_layers=2,
      queries=4,
      grid=(4, 4),
      patch_size=2,
      token_dim=4,
    )
  )
  config.batch_size = 64
  config.eval_batch_size = 120
  config.train_for = "3000 steps"
  config.evaluate_every = "500 steps"
  config.checkpoint.every = "500 steps"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = "3 percent"
  config.ema.decay = 0.99
  config.ema.every = 10
  config.sampling.steps = 16


def _test(config: ml_collections.ConfigDict) -> None:
  _digits(config)
  config.model.update(
    dict(
      width=16,
      heads=2,
      connector_layers=1,
      encoder_layers=1,
      decoder_layers=1,
      flow_layers=1,
    )
  )
  config.train_for = "12 steps"
  config.evaluate_every = "6 steps"
  config.checkpoint.every = "3 steps"
  config.ema.every = 4
  config.evaluation.num_samples = 0
