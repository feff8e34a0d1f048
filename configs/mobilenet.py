"""MobileNet V1 and V2 on ImageNet-1k, with ELA and ULSAM as papers have them.

"MobileNets" (arXiv 1704.04861), "MobileNetV2" (1801.04381), "ELA: Efficient
Local Attention" (2403.01123) and "ULSAM" (2006.15102).

  python train.py --config=configs/mobilenet.py:v2_ela_base \\
    --workdir=runs/ela --config.data.data_dir=...
  python eval.py --config=configs/mobilenet.py:v2 \\
    --weights=timm:mobilenetv2_100.ra_in1k

Variants:

- `v1`, `v2`: the networks of multiplier 1; 70.65 and 71.25 % in ULSAM's paper.
- `v2_ela_base`, `v2_ela_small`, `v2_ela_large`: ELA within each block that
  expands. What the paper has for these we could not read.
- `v1_ulsam`: a module of 4 groups for one of the five blocks of 512 channels at
  14 x 14; 70.43 % there. `v2_ulsam`: one for a block of 96 channels and one for
  one of 160; 71.52 %. Which of equal blocks they are, no source says.
- `digits`, `fashion_mnist`: small ones of V2, in minutes on a CPU.

The recipe is that of the script of ELA's authors (SGD, 0.1 for 256 images, 200
epochs, weight decay 1e-4) with a cosine for its steps, whose length they do not
record; ULSAM's authors say nothing of theirs.
"""

from typing import Any

import ml_collections

from configs import common, digits, fashion_mnist, imagenet


def _ela(variant: str) -> dict[str, Any]:
  return {"gate": "ela", "gate_options": {"variant": variant}}


_ULSAM = {"gate": "ulsam", "gate_options": {"groups": 4}}
_PUBLISHED = {
  "v1": ("mobilenetv1_100", {}),
  "v2": ("mobilenetv2_100", {}),
  "v2_ela_base": ("mobilenetv2_100", _ela("base")),
  "v2_ela_small": ("mobilenetv2_100", _ela("small")),
  "v2_ela_large": ("mobilenetv2_100", _ela("large")),
  "v1_ulsam": ("mobilenetv1_100", {**_ULSAM, "replace": (8,)}),
  "v2_ulsam": ("mobilenetv2_100", {**_ULSAM, "replace": (11, 14)}),
}
_SMALL = {
  "digits": digits.recipe,
  "fashion_mnist": fashion_mnist.recipe,
}
VARIANTS = (*_PUBLISHED, *_SMALL)


def get_config(variant: str) -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("mobilenet", variant, VARIANTS)
  if variant in _SMALL:
    return _small(_SMALL[variant]())
  name, fields = _PUBLISHED[variant]
  config = imagenet.get_config(name, 224)
  config.model.update(fields)
  config.model.dropout_rate = 0.1
  config.data.train_transform = "random_resized_crop|flip"
  config.data.eval_transform = "resize_center_crop(ratio=0.875)"
  config.batch_size = 256
  config.train_for = "200 epochs"
  config.optimizer.name = "sgd"
  config.optimizer.momentum = 0.9
  config.optimizer.learning_rate = 0.1
  config.optimizer.final_learning_rate = 0.0
  config.optimizer.warmup = "5 epochs"
  config.optimizer.weight_decay = 1e-4
  return config


def _small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Maps of 8 x 8 and 4 x 4 pixels."""
  config.model = ml_collections.ConfigDict(
    dict(
      name="mobilenetv2_100",
      stages=((4, 16, 2, 2), (4, 32, 3, 2)),
      stem_width=8,
      final_width=64,
    )
  )
  return config
