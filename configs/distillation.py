"""Linear attention in the place of a trained diffusion model's own.

  python train.py --config=configs/distillation.py:digits \\
    --config.init.weights=runs/digits --workdir=runs/linfusion
  python sample.py --weights=runs/linfusion --size=16x16

Variants:
- `digits`: LinFusion (arXiv 2409.02097) for a run of the variant `digits` of
  configs/diffusion.py. The losses are the paper's, and so is the optimizer but
  for its learning rate, 1e-3 instead of 1e-4, since the model is small.
- `test`: a few steps for a run of that file's `test`.
"""

import ml_collections

from configs import common, diffusion
from tasks.distillation import Distillation

VARIANTS = ("digits", "test")


def get_config(variant: str = "digits") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("distillation", variant, VARIANTS)
  config = diffusion.get_config(variant)
  config.task = "distillation"
  config.update({"distillation": Distillation.default_config().distillation})
  config.init.weights = "runs/digits"
  config.model.update(dict(mixer="linfusion", mixer_options=dict(reduction=1)))
  config.optimizer.weight_decay = 0.0
  config.optimizer.schedule = "constant"
  if variant == "digits":
    config.train_for = "600 steps"
    config.evaluate_every = "200 steps"
    config.checkpoint.every = "200 steps"
    config.optimizer.learning_rate = 1e-3
    config.ema.decay = 0.98
  return config
