"""DiMR: diffusion by a network of several resolutions.

  python train.py --config=configs/dimr.py:digits --workdir=runs/dimr

Variants:
- `digits` (the default): what `configs/diffusion.py:digits` learns, with as
  many multiply-adds; it trains in minutes on two cores.
- `imagenet_256`: the recipe of DiMR-XL/2R, on latents of 256x256 pixels:
  --config.data.latents=<folder of tools/encode_latents.py>. The larger model is
  --config.model.name=dimr_g_2r.
- `test`: a few steps of a very small model, for tests.
"""

import ml_collections

from configs import common, diffusion

VARIANTS = ("digits", "imagenet_256", "test")


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("dimr", variant, VARIANTS)
  config = diffusion.get_config(
    "imagenet_256" if variant == "imagenet_256" else "digits"
  )
  config.model = ml_collections.ConfigDict(dict(name="dimr_xl_2r"))
  # Stable Diffusion's noise, of which every stage has a part to predict.
  config.path.update(
    dict(name="ddpm", schedule="scaled_linear", prediction="noise")
  )
  # All decays but how vectors go with time: norms and biases too.
  config.optimizer.decay_exclude = (".*/(slope|offset)",)
  {"digits": _digits, "imagenet_256": _imagenet_256, "test": _test}[variant](
    config
  )
  return config


def _imagenet_256(config: ml_collections.ConfigDict) -> None:
  """arXiv 2406.09416, as its code (configs/, train.py) has it."""
  config.seed = 1234
  config.batch_size = 1024
  config.train_for = "1000000 steps"
  config.optimizer.learning_rate = 2e-4
  config.optimizer.warmup = "5000 steps"
  config.optimizer.b1, config.optimizer.b2 = 0.99, 0.99
  config.optimizer.weight_decay = 0.03
  config.model.remat = True
  # Its config's c + 0.4 (c - u). Guidance that changes with time, of its best
  # figures, is not here.
  config.sampling.guidance = 1.4
  config.sampling.solver = "dpm_solver"


def _digits(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(widths=(72, 32), depths=(5, 5), heads=4))
  config.optimizer.learning_rate = 2e-3


def _test(config: ml_collections.ConfigDict) -> None:
  _digits(config)
  config.model.update(dict(widths=(16, 8), depths=(1, 1), heads=2))
  config.batch_size = 8
  config.eval_batch_size = 120
  common.schedule(config, steps=12, every=6, save_every=3)
  config.evaluation.num_samples = 0
  config.sampling.steps = 4
