"""Flowformer's vision model: the released script's recipe on ImageNet-1k.

"Flowformer: Linearizing Transformers with Conservation Flows" (arXiv
2202.06258), whose table has 80.6 % for it, and 78.7 % for the same network with
softmax attention (`--config.model.attention=softmax`).

  python train.py --config=configs/flowformer.py:224 --workdir=runs/flow_224 \\
    --config.data.data_dir=...
  python train.py --config=configs/flowformer.py:digits --workdir=runs/flow

Variants:

- `224`: the network and the recipe of the script.
- `digits`: a small one on the embedded digits, our own recipe, for minutes on a
  CPU.

From the script: AdamW, 128 images on each of 6 devices, a learning rate of 5e-4
for each 512 images, 300 epochs with a cosine to 1e-5 after 5 that begin at 1e-6
(here at 0), no decay of what has one axis nor of positions, and RandAugment
instead of its color jitter, as in timm.
"""

import ml_collections

from configs import common, digits, imagenet

_BATCH_SIZE = 768
_NO_DECAY = ("bias", "scale", "position", ".+_layer_scale")
VARIANTS = ("224", "digits")


def get_config(variant: str) -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("flowformer", variant, VARIANTS)
  return _digits() if variant == "digits" else _released()


def _released() -> ml_collections.ConfigDict:
  config = imagenet.get_config("flowformer_224", 224)
  config.data.train_transform = (
    "random_resized_crop|flip"
    "|rand_augment(layers=2,magnitude=9,magnitude_std=0.5,increasing=True)"
  )
  config.data.eval_transform = "resize_center_crop(ratio=0.875)"
  config.model.stochastic_depth_rate = 0.2
  config.batch_size = _BATCH_SIZE
  config.train_for = "300 epochs"
  config.loss.label_smoothing = 0.1
  config.mixing.mixup_alpha = 0.8
  config.mixing.cutmix_alpha = 1.0
  config.optimizer.learning_rate = 5e-4 * _BATCH_SIZE / 512
  config.optimizer.final_learning_rate = 1e-5
  config.optimizer.warmup = "5 epochs"
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip_norm = 1.0
  config.optimizer.decay_exclude = _NO_DECAY
  return config


def _digits() -> ml_collections.ConfigDict:
  """Maps of 8 x 8 and 4 x 4 tokens."""
  config = digits.recipe()
  config.model = ml_collections.ConfigDict(
    dict(
      name="flowformer_224",
      widths=(64, 128),
      depths=(2, 2),
      heads=4,
      # Of a run of 674 steps: that of the script leaves no time to grow.
      layer_scale=1.0,
      image_size=32,
      stochastic_depth_rate=0.1,
    )
  )
  config.optimizer.decay_exclude = _NO_DECAY
  return config
