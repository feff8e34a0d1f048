"""Autoencoders, whose latents generators learn: the embedded one, or yours.

  python train.py --config=configs/autoencoder.py --workdir=runs/autoencoder

Variants:
- `digits` (the default): 4 x 4 latents of two channels for handwritten digits
  of 8 x 8 pixels, trained in minutes on two cores.
- `test`: a few steps of a very small model, for tests and notebooks.
"""

import ml_collections

from configs import common

VARIANTS = ("digits", "test")


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("autoencoder", variant, VARIANTS)
  config = common.get_config("autoencoding")
  config.model.name = "autoencoder_digits"
  config.data.name = "digits"
  config.data.image_size = 8
  config.data.channels = 1
  # Moved by whole pixels, they stay as sharp as they are.
  config.data.train_transform = "shift(pixels=1)"
  config.batch_size = 64
  config.eval_batch_size = 120
  # More than for photographs, which have a thousand times the values.
  config.loss.kl_weight = 1e-3
  config.optimizer.clip_norm = 1.0
  {"digits": _digits, "test": _test}[variant](config)
  return config


def _digits(config: ml_collections.ConfigDict) -> None:
  common.schedule(config, steps=2000, every=500, rates=(2e-3, 2e-5))
  config.ema.decay = 0.99


def _test(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(width=8, groups=4))
  common.schedule(config, steps=12, every=6, save_every=3)
