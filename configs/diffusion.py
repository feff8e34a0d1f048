"""Diffusion transformers: images and videos out of noise.

  python train.py --config=configs/diffusion.py:moving_digits \
    --workdir=runs/moving_digits

Variants:
- `digits` (the default): handwritten digits of 8x8 pixels by class, which
  trains in minutes on two cores.
- `moving_digits`: 8 frames of 16x16 pixels in which two digits move and bounce,
  by their classes; likewise.
- `imagenet_256`: the recipe of DiT-XL/2, on latents of 256x256 pixels:
  --config.data.latents=<folder of tools/encode_latents.py>. The smaller models
  are --config.model.name=dit_s_2, dit_b_4 and so on.
- `test`: a few steps of a very small model of videos, for tests and notebooks.
"""

import ml_collections

from configs import common

VARIANTS = ("digits", "moving_digits", "imagenet_256", "test")


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("diffusion", variant, VARIANTS)
  config = common.get_config("diffusion")
  {
    "digits": _digits,
    "moving_digits": _moving_digits,
    "imagenet_256": _imagenet_256,
    "test": _test,
  }[variant](config)
  return config


def _imagenet_256(config: ml_collections.ConfigDict) -> None:
  """arXiv 2212.09748, as its code (train.py, diffusion/) has it."""
  config.model.name = "dit_xl_2"
  config.batch_size = 256
  config.train_for = "7000000 steps"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.schedule = "constant"
  config.optimizer.warmup = "0 steps"
  config.optimizer.b1, config.optimizer.b2 = 0.9, 0.999
  config.optimizer.weight_decay = 0.0
  config.ema.decay = 0.9999
  config.ema.warmup = False
  # Of the paper's best: 250 steps of DDPM's own sampler, which adds noise; ours
  # adds none.
  config.sampling.steps = 250
  config.sampling.guidance = 1.5
  # All that follows is ours. No samples, as their measure needs a feature
  # network: eval.py --num_samples=50000 --features=inception:<weights>.pth.
  config.evaluation.num_samples = 0
  config.dtype = "bfloat16"
  config.data.eval_split = "validation"
  config.data.num_threads = 16
  config.eval_batch_size = 1024
  config.evaluate_every = "10000 steps"
  config.checkpoint.every = "5000 steps"


def _embedded(config: ml_collections.ConfigDict) -> None:
  """What the two that train here have in common."""
  # Classes are tokens too, so that all that acts on cross-attention has some.
  config.model.update(
    dict(
      conditioning="cross",
      position_encoding="rotary",
      learned_variance=False,
      guided_channels=None,
    )
  )
  config.path.name = "flow"
  config.path.prediction = "velocity"
  config.data.channels = 1
  config.optimizer.warmup = "3 percent"
  config.optimizer.weight_decay = 0.01
  config.optimizer.b2 = 0.99
  config.optimizer.clip_norm = 1.0
  config.ema.decay = 0.998


def _digits(config: ml_collections.ConfigDict) -> None:
  _embedded(config)
  config.data.name = "digits"
  config.data.image_size = 8
  config.data.train_transform = "resize(method=bilinear)"
  # 4 x 4 tokens of 2 x 2 pixels.
  config.model.update(dict(patch_size=(2, 2), width=96, depth=4, heads=3))
  config.batch_size = 128
  config.eval_batch_size = 120
  config.train_for = "2500 steps"
  config.evaluate_every = "500 steps"
  config.checkpoint.every = "500 steps"
  config.optimizer.learning_rate = 2e-3


def _moving_digits(config: ml_collections.ConfigDict) -> None:
  _embedded(config)
  config.data.name = "moving_digits"
  config.data.image_size = 16
  # 8 x 4 x 4 tokens of 4 x 4 pixels.
  config.model.update(dict(patch_size=(1, 4, 4), width=96, depth=6, heads=3))
  config.data.video.speed = 1
  config.path.times = "logit_normal"
  config.batch_size = 32
  config.eval_batch_size = 60
  config.train_for = "4400 steps"
  config.evaluate_every = "500 steps"
  config.checkpoint.every = "500 steps"
  config.optimizer.learning_rate = 2e-3
  config.sampling.guidance = 4.0
  config.evaluation.num_samples = 120


def _test(config: ml_collections.ConfigDict) -> None:
  _moving_digits(config)
  config.data.video.frames = 4
  config.data.video.eval_examples = 20
  config.data.video.train_examples = 100
  config.model.update(dict(width=24, depth=2, heads=2))
  config.batch_size = 8
  config.eval_batch_size = 8
  config.train_for = "12 steps"
  config.evaluate_every = "6 steps"
  config.checkpoint.every = "3 steps"
  config.evaluation.num_samples = 0
  config.sampling.steps = 4
