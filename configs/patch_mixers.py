"""ViT, MLP-Mixer and NiNformer at equal parameters, and NiNformer's script.

"NiNformer: A Network in Network Transformer with Token Mixing Generated Gating
Function" (arXiv 2403.02411), which compares itself with the other two.

  python train.py --config=configs/patch_mixers.py:ninformer_fashion_mnist \\
    --workdir=runs/ninformer

Variants:

- `ninformer`: its script, CIFAR-10 of TFDS: Adam, 1e-3 for all of 100 epochs,
  dropout 0.5. The script augments the test images too; here they are as they
  are.
- `digits` and `fashion_mnist` for a ViT, and `mlp_` and `ninformer_` before
  these for the others: networks of 28,400 parameters, equal to 0.6 %, in
  minutes on a CPU. The recipe is ours.
"""

from typing import Any

import ml_collections

from configs import common, digits, fashion_mnist

# Of 64 tokens, patches of 4 x 4 pixels.
_SHARED = {
  "patch_size": 4,
  "width": 32,
  "image_size": 32,
  "dropout_rate": 0.0,
}
_MODELS: dict[str, dict[str, Any]] = {
  "": {
    "name": "vit_tiny_16_224",
    "depth": 2,
    "heads": 4,
    "hidden_width": 128,
  },
  "mlp_": {
    "name": "mixer_small_16_224",
    "depth": 2,
    "hidden_width": 128,
    "token_hidden": 40,
  },
  "ninformer_": {
    "name": "ninformer_4_32",
    "depth": 2,
    "hidden_width": 64,
    "token_hidden": 32,
  },
}
_RECIPES = {"digits": digits.recipe, "fashion_mnist": fashion_mnist.recipe}
VARIANTS = (
  "ninformer",
  *(prefix + data for prefix in _MODELS for data in _RECIPES),
)


def get_config(variant: str) -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("patch_mixers", variant, VARIANTS)
  if variant == "ninformer":
    return _script()
  data = next(name for name in _RECIPES if variant.endswith(name))
  config = _RECIPES[data]()
  fields = _MODELS[variant.removesuffix(data)]
  config.model = ml_collections.ConfigDict(_SHARED | fields)
  return config


def _script() -> ml_collections.ConfigDict:
  config = common.get_config()
  config.model.name = "ninformer_4_32"
  config.data.name = "cifar10"
  config.data.image_size = 32
  config.data.train_transform = "shift(pixels=4)|flip"
  config.data.mean = config.data.std = (0.5, 0.5, 0.5)
  config.batch_size = 128
  config.eval_batch_size = 500
  config.train_for = "100 epochs"
  config.optimizer.schedule = "constant"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = "0 steps"
  config.optimizer.weight_decay = 0.0
  return config
