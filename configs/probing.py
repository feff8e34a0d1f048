"""Probing a frozen trunk: efficient probing's recipe, and a small one.

"Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency"
(arXiv 2506.10178), as its code and logs have it.

  python train.py --config=configs/probing.py:mae_base --workdir=runs/ep
  python train.py --config=configs/probing.py:mae_base --workdir=runs/lp \\
    --config.model.probe=cls --config.model.probe_options="{}"
  python eval.py --weights=runs/ep --neighbors=20

Variants:

- `mae_base`, `mae_large`, `mae_huge`: timm's masked autoencoders on ImageNet,
  32 queries. Published for `mae_base`: 75.46 % with efficient probing, 67.78 %
  with linear probing of the class token, 35.57 % for 20 neighbours; for
  `mae_large` 79.52, 76.01 and 48.06 %. Those are of the best epoch, as
  `eval.py --step=best` has it. We could not run it, as ImageNet is not here.
- `digits_trunk`: a small vision transformer on the digits 0 to 4, our own.
- `digits`: its trunk, frozen, and a probe with 8 queries on the digits 5 to 9:

  python train.py --config=configs/probing.py:digits_trunk \\
    --workdir=runs/trunk
  python train.py --config=configs/probing.py:digits --workdir=runs/probe

LARS with momentum 0.9 and trust 0.001, no weight decay, a learning rate of 0.1
for each 256 images, 10 epochs of warm-up and 80 of a half cosine. The crops are
the Inception crop where the code has that of masked autoencoders. Batch norm
sees the whole batch, where the code's sees that of a device.
"""

import ml_collections

from configs import common, digits, imagenet

# Our model, and timm's name of its weights.
_MAE = {
  "mae_base": ("vit_base_16_224", "vit_base_patch16_224"),
  "mae_large": ("vit_large_16_224", "vit_large_patch16_224"),
  "mae_huge": ("vit_huge_14_224", "vit_huge_patch14_224"),
}
VARIANTS = (*_MAE, "digits_trunk", "digits")
# A small vision transformer, of 64 patches of 4 x 4 pixels.
TRUNK = {
  "patch_size": 4,
  "width": 64,
  "depth": 4,
  "heads": 4,
  "hidden_width": 256,
  "image_size": 32,
}


def get_config(variant: str) -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("probing", variant, VARIANTS)
  if variant == "digits_trunk":
    config = digits.recipe()
    config.model = {"name": "vit_tiny_16_224", **TRUNK}
    config.data.classes = (0, 1, 2, 3, 4)
    return config
  return _digits() if variant == "digits" else _mae(variant)


def with_lars(config: ml_collections.ConfigDict, blr: float = 0.1) -> None:
  """Sets the optimizer of a config, for its batch size.

  Args:
    config: of a run.
    blr: the learning rate for 256 images.
  """
  config.optimizer.name = "lars"
  config.optimizer.momentum = 0.9
  config.optimizer.trust_coefficient = 0.001
  config.optimizer.weight_decay = 0.0
  config.optimizer.learning_rate = blr * config.batch_size / 256


def _mae(variant: str) -> ml_collections.ConfigDict:
  name, weights = _MAE[variant]
  config = common.get_config("probing")
  config.model = {
    "name": f"probed_{name}",
    "probe": "ep",
    "probe_options": {"queries": 32},
  }
  config.init.weights = f"timm:{weights}.mae"
  config.init.part = "trunk"
  config.data.name = "imagenet2012"
  config.data.eval_split = "validation"
  config.data.image_size = 224
  config.data.train_transform = "random_resized_crop|flip"
  # 256 pixels, of which the middle 224.
  config.data.eval_transform = "resize_center_crop(ratio=0.875)"
  config.data.mean, config.data.std = imagenet.MEAN, imagenet.STD
  config.data.num_threads = 16
  config.dtype = "bfloat16"
  config.batch_size = 4096
  config.eval_batch_size = 1024
  config.train_for = "90 epochs"
  config.optimizer.warmup = "10 epochs"
  with_lars(config)
  return config


def _digits() -> ml_collections.ConfigDict:
  config = common.get_config("probing")
  # Data of the digits without augmentation: features can be cached.
  recipe = digits.recipe()
  for field in ("name", "image_size", "channels", "mean", "std"):
    config.data[field] = recipe.data[field]
  config.data.train_transform = config.data.eval_transform
  config.data.classes = (5, 6, 7, 8, 9)
  config.model = {
    "name": "probed_vit_tiny_16_224",
    "backbone_options": TRUNK,
    "probe": "ep",
    "probe_options": {"queries": 8},
  }
  config.init.weights = "runs/trunk"
  config.init.part = "trunk"
  config.batch_size, config.eval_batch_size = 128, 120
  config.train_for = "60 epochs"
  config.evaluate_every = config.checkpoint.every = "20 epochs"
  config.optimizer.warmup = "5 epochs"
  # Far fewer steps than ImageNet's 28,000.
  with_lars(config, blr=10.0)
  return config
