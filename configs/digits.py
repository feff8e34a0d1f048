"""The embedded default: a small MaxViT on scikit-learn's handwritten digits.

1,437 training and 360 test images of 8x8 pixels, enlarged to 32x32. A support
vector machine gets 96 % on this split.

  python train.py --config=configs/digits.py --workdir=runs/digits

Variants: `digits.py` (the default) and `digits.py:tiny`, which is smaller and
runs for a few steps only, for tests and notebooks.
"""

import ml_collections

from configs import common

VARIANTS = ("default", "tiny")


def get_config(variant: str = "default") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("digits", variant, VARIANTS)
  config = recipe()

  # The stem halves the 32 pixels, then each stage does: maps of 8, 4 and 2.
  config.model = ml_collections.ConfigDict(
    dict(
      name="maxvit_tiny_224",
      stem_widths=(32, 32),
      widths=(32, 64, 128),
      depths=(1, 1, 1),
      head_dim=16,
      window_size=2,
      # The default of 0.99 would lag behind in a run of 674 steps.
      batch_norm_momentum=0.9,
      stochastic_depth_rate=0.1,
      remat=False,
    )
  )

  if variant == "tiny":
    config.data.image_size = 16
    config.model.stem_widths = (16, 16)
    config.model.widths = (16,)
    config.model.depths = (1,)
    config.model.window_size = 2
    common.schedule(config, steps=12, every=6, save_every=3)
  return config


def recipe() -> ml_collections.ConfigDict:
  """Data, length and optimizer for the digits, without a model.

  The variant `digits` of every family begins with it.
  """
  config = common.get_config()
  config.data.name = "digits"
  config.data.image_size = 32
  config.data.channels = 1
  config.data.train_transform = "affine(rotate=15, shift=0.1, zoom=0.15)"
  config.data.mean = (0.3,)
  config.data.std = (0.35,)

  config.batch_size = 64
  config.eval_batch_size = 120
  config.train_for = "30 epochs"
  config.evaluate_every = "5 epochs"
  config.checkpoint.every = "5 epochs"

  config.loss.label_smoothing = 0.1
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup = "5 percent"
  config.optimizer.final_learning_rate = 1e-5
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip_norm = 1.0
  config.ema.decay = 0.99
  return config
