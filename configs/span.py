"""SPAN: images made larger by a small network of convolutions.

  python eval.py --config=configs/span.py:c28_x4 --weights=<file>.safetensors \
    --config.data.folder=<folder of NAME_HR.png and NAME_LR.png>
  python train.py --config=configs/span.py --workdir=runs/span

Variants:
- `photographs_x2` (the default): the embedded one, the photographs of
  scikit-learn and scikit-image at half their size, which trains in minutes on
  two cores.
- `c28_x4`, `c26_x4`: the networks of 28 and 26 channels of the NTIRE 2024
  challenge on efficient super-resolution, in the form "deploy", for their
  public weights.
- `df2k`: 48 channels, four times as large, on folders of DIV2K and Flickr2K.
  SPAN's own recipe is not public; this is HAT's.
- `test`: a few steps of a very small model, for tests.
"""

import ml_collections

from configs import common, restoration


def get_config(variant: str = "photographs_x2") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("span", variant, VARIANTS)
  return VARIANTS[variant]()


def _photographs_x2() -> ml_collections.ConfigDict:
  config = restoration.get_config("span_c48_x2", scale=2)
  restoration.photographs(config, steps=4000)
  config.model.channels = 16
  return config


def _published(channels: int) -> ml_collections.ConfigDict:
  config = restoration.get_config(f"span_c{channels}_x4", scale=4)
  config.model.form = "deploy"
  config.data.name = "folder"
  return config


def _df2k() -> ml_collections.ConfigDict:
  config = restoration.get_config("span_c48_x4", scale=4)
  restoration.df2k(config)
  return config


def _test() -> ml_collections.ConfigDict:
  config = _photographs_x2()
  config.model.update(dict(channels=4, blocks=1))
  config.data.patch_size = 8
  config.batch_size = 4
  config.train_for = "4 steps"
  config.evaluate_every = config.checkpoint.every = "2 steps"
  return config


VARIANTS = {
  "photographs_x2": _photographs_x2,
  "c28_x4": lambda: _published(28),
  "c26_x4": lambda: _published(26),
  "df2k": _df2k,
  "test": _test,
}
