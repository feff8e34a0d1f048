"""MTAIR and Restormer: images without noise, rain and haze, of the same size.

  python train.py --config=configs/mtair.py --workdir=runs/mtair
  python train.py --config=configs/mtair.py:all_in_one --workdir=runs/all \
    --config.data.train_folder=<clean images> --config.data.folder=<others>
  python eval.py --config=configs/mtair.py:restormer \
    --weights=<file>.safetensors --config.data.folder=<NAME_HR, NAME_LR .png>

Variants:
- `photographs` (the default): the embedded one, noise of 25 grey levels on the
  photographs of scikit-learn and scikit-image, a small network that trains in
  minutes on two cores.
- `all_in_one`: the recipe of MTAIR's code for one network of five degradations.
- `restormer`: the same without scans and prompts, and what public weights of
  Restormer for rain and motion blur are for.
- `test`: a few steps of a very small model, for tests.

From the code of MTAIR (arXiv 2412.15845): AdamW of 2e-4 with PyTorch's decay of
0.01 on all parameters, L1, 200 epochs of 158,431 patches of 128 pixels, of
which 15 warm up, batches of 8, noise of 15, 25 and 50, and measures of images
that are not rounded. Ours are the blocks that its code lacks (`models.mtair`)
and the data: there, rain and haze are pairs of Rain100L and RESIDE, and kinds
have shares of their own; here one folder of clean images gets one of the five
for each patch, rain and haze are made up, and 31 patches of each of its 5,144
images make an epoch as long. So its figures (31.50 dB at 25, 39.15 dB for rain)
are nothing that this recipe is known to reach; none of it has been trained.
"""

import ml_collections

from configs import common, restoration

_NOISE = ("noise(sigma=15)", "noise(sigma=25)", "noise(sigma=50)")
# Restormer with three blocks.
SMALL = {
  "width": 8,
  "depths": (1, 1),
  "heads": (1, 2),
  "refinement_depth": 0,
}
# What the small network has of MTAIR, for patches of 32 pixels. Scans as wide
# as published take a CPU ten times as long as all the rest.
SCANS = {
  "scan_levels": (0,),
  "scan_expansion": 1,
  "scan_states": 8,
  "scan_chunk": 4,
}
PROMPTS = {"prompt_widths": (8, 16), "prompt_sides": (32, 16)}


def get_config(variant: str = "photographs") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("mtair", variant, VARIANTS)
  return VARIANTS[variant]()


def _photographs() -> ml_collections.ConfigDict:
  config = restoration.get_config("restormer", scale=1)
  restoration.photographs(config, steps=1500)
  config.data.patch_size = 32
  config.batch_size = 8
  config.model.update(SMALL | SCANS | PROMPTS)
  config.data.degradations = ("noise(sigma=25)",)
  _measured_as_noise(config)
  # Tiles, so that one program is compiled for all sizes.
  config.evaluation.update(dict(tile=128, overlap=16))
  return config


def _all_in_one(model: str = "mtair") -> ml_collections.ConfigDict:
  config = restoration.get_config(model, scale=1)
  config.data.name = "folder"
  config.data.patch_size = 128
  config.data.degradations = (*_NOISE, "rain", "haze")
  config.data.repeat = 31
  config.data.num_threads = 16
  config.batch_size = 8
  config.train_for = "200 epochs"
  config.optimizer.learning_rate = 2e-4
  config.optimizer.weight_decay = 0.01
  config.optimizer.decay_exclude = ()
  config.optimizer.warmup = "15 epochs"
  _measured_as_noise(config)
  return config


def _measured_as_noise(config: ml_collections.ConfigDict) -> None:
  """As papers on noise do: RGB, not rounded to 8 bits."""
  config.evaluation.rounded = False
  config.checkpoint.best_metric = "psnr_rgb"


def _test() -> ml_collections.ConfigDict:
  config = _photographs()
  config.model.update(dict(width=4, scan_states=2, prompt_heads=2))
  config.model.update(dict(prompt_widths=(2, 2), prompt_sides=(8, 4)))
  config.data.patch_size = 8
  config.batch_size = 4
  config.train_for = "4 steps"
  config.evaluate_every = config.checkpoint.every = "2 steps"
  return config


VARIANTS = {
  "photographs": _photographs,
  "all_in_one": _all_in_one,
  "restormer": lambda: _all_in_one("restormer"),
  "test": _test,
}
