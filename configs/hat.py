"""HAT: images made larger by windows of attention and convolutions.

  python train.py --config=configs/hat.py --workdir=runs/hat
  python eval.py --config=configs/hat.py:x4 --weights=<file>.safetensors \
    --config.data.folder=<folder of NAME_HR.png and NAME_LR.png>

What files of weights do not say is in the config and has to be that of their
training: `config.model.conv_scale` and `config.model.image_range`, here those
of the published networks.

Variants:
- `photographs_x2` (the default): the embedded one, a small network on the
  photographs of scikit-learn and scikit-image at half their size, which trains
  in minutes on two cores.
- `s_x4`, `x4`, `l_x4`, and likewise `x2` and `x3`: HAT-S, HAT and HAT-L as
  published, for their weights.
- `df2k`: HAT twice as large from scratch, on folders of DIV2K and Flickr2K: its
  own recipe.
- `finetune`: HAT four times as large on the same, from the weights of another
  scale or of ImageNet: 250,000 steps at a twentieth of the rate.
- `test`: a few steps of a very small model, for tests.
"""

import functools

import ml_collections

from configs import common, restoration

# Of the embedded one: windows of 8 pixels, of 12 with what is around.
SMALL = {
  "width": 24,
  "depths": (2,),
  "heads": 2,
  "window_size": 8,
  "halo_size": 2,
  "mlp_width": 48,
  "conv_width": 8,
  "gate_width": 4,
  "upsample_width": 16,
}


def get_config(variant: str = "photographs_x2") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("hat", variant, VARIANTS)
  return VARIANTS[variant]()


def _model(size: str, scale: int) -> ml_collections.ConfigDict:
  config = restoration.get_config(f"{size}_x{scale}", scale=scale)
  config.model.conv_scale = 0.01
  config.model.image_range = 1.0
  return config


def _photographs_x2() -> ml_collections.ConfigDict:
  config = _model("hat", scale=2)
  restoration.photographs(config, steps=2400)
  config.model.update(SMALL)
  # Without it minutes end below bicubic interpolation.
  config.model.residual = True
  return config


def _published(size: str, scale: int) -> ml_collections.ConfigDict:
  config = _model(size, scale)
  config.data.name = "folder"
  return config


def _df2k() -> ml_collections.ConfigDict:
  config = _model("hat", scale=2)
  restoration.df2k(config)
  return config


def _finetune() -> ml_collections.ConfigDict:
  config = _model("hat", scale=4)
  restoration.df2k(config)
  config.train_for = "250000 steps"
  config.optimizer.learning_rate = 1e-5
  config.optimizer.boundaries = tuple(
    f"{thousands}000 steps" for thousands in (125, 200, 225, 240)
  )
  return config


def _test() -> ml_collections.ConfigDict:
  config = _photographs_x2()
  config.model.update(dict(width=4, depths=(1,), mlp_width=4, window_size=4))
  config.model.update(dict(halo_size=1, conv_width=2, upsample_width=4))
  config.data.patch_size = 8
  config.batch_size = 4
  config.train_for = "4 steps"
  config.evaluate_every = config.checkpoint.every = "2 steps"
  return config


VARIANTS = {
  "photographs_x2": _photographs_x2,
  **{
    f"{prefix}x{scale}": functools.partial(_published, size, scale)
    for prefix, size in (("s_", "hat_s"), ("", "hat"), ("l_", "hat_l"))
    for scale in (2, 3, 4)
  },
  "df2k": _df2k,
  "finetune": _finetune,
  "test": _test,
}
