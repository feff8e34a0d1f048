"""A small residual network on Fashion-MNIST, with light modules by name.

60,000 training and 10,000 test images of 28 x 28 pixels, enlarged to 32 x 32;
Debian's package `dataset-fashion-mnist` has them. The recipe is ours, for
minutes on a CPU.

  python train.py --config=configs/fashion_mnist.py:ela --workdir=runs/ela

Variants, which are what is at the end of residual branches, or of all of them:

- `none`, `squeeze_excite`, `eca`, `ulsam`;
- `ela`, ELA-B as its authors have it in residual networks: after the 3 x 3
  convolution, the stem and each stage, with what it weighs added once more.
"""

import ml_collections

from configs import common

VARIANTS = {
  "none": {"gate": "none"},
  "squeeze_excite": {"gate": "squeeze_excite"},
  "eca": {"gate": "eca"},
  "ela": {
    "gate": "ela",
    "gate_options": {"variant": "base", "residual": True},
    "gate_places": ("within", "stem", "stages"),
  },
  "ulsam": {"gate": "ulsam", "gate_options": {"groups": 4}},
}


def get_config(variant: str = "squeeze_excite") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("fashion_mnist", variant, VARIANTS)
  config = recipe()
  config.model = ml_collections.ConfigDict(
    dict(
      name="resnetrs_50_160",
      stem_widths=(8, 8, 16),
      widths=(16, 32),
      depths=(1, 1),
      batch_norm_momentum=0.9,
      **VARIANTS[variant],
    )
  )
  return config


def recipe() -> ml_collections.ConfigDict:
  """Data, length and optimizer for Fashion-MNIST, without a model.

  The variants `fashion_mnist` of families begin with it.
  """
  config = common.get_config()
  config.data.name = "fashion_mnist"
  config.data.image_size = 32
  config.data.channels = 1
  config.data.train_transform = "resize(method=bilinear)|shift(pixels=2)|flip"
  config.data.mean = (0.286,)
  config.data.std = (0.353,)

  config.batch_size = 128
  config.eval_batch_size = 500
  config.train_for = "3 epochs"
  config.loss.label_smoothing = 0.1
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup = "5 percent"
  config.optimizer.final_learning_rate = 1e-5
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip_norm = 1.0
  config.ema.decay = 0.99
  return config
