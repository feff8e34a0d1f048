"""LINA: images, a few tokens at a time, from linear attention.

  python train.py --config=configs/lina.py:digits --workdir=runs/lina

Variants:
- `digits` (the default): the embedded one, handwritten digits of 8x8 pixels by
  class, which trains in minutes on two cores.
- `imagenet_256`: the paper's recipe for `lina_d48w768`, on latents of 256x256
  pixels: --config.data.latents=<folder of tools/encode_latents.py>. The paper's
  batches of its larger models are 1536 (--config.model.name=lina_d48w1024) and
  768 (lina_d48w1536).
- `test`: a few steps of a very small model, for tests and notebooks.
"""

import ml_collections

from configs import common
from models import lina

VARIANTS = ("digits", "imagenet_256", "test")


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("lina", variant, VARIANTS)
  config = common.get_config("masked_generation")
  # The paper's, on whatever data.
  config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
  config.optimizer.weight_decay = 0.02
  config.optimizer.decay_exclude = (".*norm/(scale|bias)",)
  config.frozen = lina.FROZEN
  {"digits": _digits, "imagenet_256": _imagenet_256, "test": _test}[variant](
    config
  )
  return config


def _imagenet_256(config: ml_collections.ConfigDict) -> None:
  """arXiv 2601.22630, as its code (config/imagenet/linear) has it."""
  config.batch_size = 2048
  config.train_for = "1200000 steps"
  config.optimizer.learning_rate = 8e-4
  config.optimizer.schedule = "constant"
  # Ours begins at 0; the paper's at a thousandth of the learning rate.
  config.optimizer.warmup = "10000 steps"
  config.ema.decay = 0.99
  config.ema.every = 100
  config.ema.warmup = False
  config.seed = 1337
  # Parameters too in the paper's, with averages in float32; ours stay float32.
  config.dtype = "bfloat16"
  # All that follows is ours. No samples, as their measure needs a feature
  # network: eval.py --num_samples=50000 --features=inception:<weights>.pth.
  config.evaluation.num_samples = 0
  config.data.eval_split = "validation"
  config.data.num_threads = 16
  config.eval_batch_size = 1024
  config.evaluate_every = "10000 steps"
  config.checkpoint.every = "5000 steps"


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
