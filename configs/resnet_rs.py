"""ResNet-RS on ImageNet-1k: the recipes of the paper and its additive study.

"Revisiting ResNets: Improved Training and Scaling Strategies" (arXiv
2103.07579).

  python train.py --config=configs/resnet_rs.py:50_160 --workdir=runs/50_160
  python eval.py --config=configs/resnet_rs.py:timm_50 \\
    --weights=timm:resnetrs50.tf_in1k

Variants, and top-1 in percent as published:

- `{depth}_{resolution}`, the paper's 11 models: `50_160` 78.8, `101_160` 80.3,
  `101_192` 81.2, `152_192` 82.0, `152_224` 82.2, `152_256` 83.0,
  `200_256` 83.4, `270_256` 83.8, `350_256` 84.0, `350_320` 84.2,
  `420_320` 84.4. The last two were stopped early by a held-out part of the
  training set.
- `{depth}_{resolution}_swish`, the Model Garden's, in the same order: 79.1,
  80.2, 81.3, 81.9, 82.5, 83.1, 83.5, 83.6, 83.7, 84.2; it has no 420.
- `study_0` ... `study_10`, table 1, ResNet-200 with one more ingredient each,
  of which it keeps the earlier: 79.0, cosine 79.3, 350 epochs 78.8, moving
  average 79.1, label smoothing 80.4, stochastic depth 80.6, RandAugment 81.0,
  dropout 80.7, weight decay 4e-5 82.2, squeeze-excite 82.9, ResNet-D 83.4.
- `timm_{depth}`, for timm's files, at the size and crop of its evaluation:
  77.858, 80.706, 82.900, 83.884, 83.596, 84.304, 84.240 for 50, 101, 152, 200,
  270, 350, 420; `tools/published/resnet_rs.csv` has other sizes. Its file for
  200 is from a later training than the paper's.
- `digits`: a small ResNet-RS on scikit-learn's digits, in minutes on a CPU.
  The recipe is ours.

Our substitutes: of the study's first row the 256 pixels, the 90 epochs and
their steps, tenfold down after 30, 60 and 80. Ours throughout: the cosine
begins where the warm-up ends, the Model Garden's at step 0; batch statistics
are those of the global batch, the paper's those of a replica.
"""

import ml_collections

import models
from configs import common, digits, imagenet
from models import resnet_rs_scaling

# Timm's `crop_pct`, by depth.
_TIMM_CROPS = {50: 0.91, 101: 0.94, 152: 1, 200: 1, 270: 1, 350: 1, 420: 1}
STUDY_STEPS = 10


def get_config(variant: str) -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("resnet_rs", variant, VARIANTS)
  return VARIANTS[variant]()


def _recipe(model: str, setting: resnet_rs_scaling.Setting):
  """What all published models were trained with, and what differs."""
  config = imagenet.get_config(model, setting.resolution)
  config.data.train_transform = imagenet.AUGMENTED.format(
    setting.rand_augment_magnitude
  )
  config.model.dropout_rate = setting.dropout_rate
  config.model.stochastic_depth_rate = setting.stochastic_depth_rate
  config.model.batch_norm_momentum = 0.0
  config.batch_size = 4096
  config.train_for = "350 epochs"
  config.loss.label_smoothing = 0.1
  config.optimizer.name = "sgd"
  config.optimizer.momentum = 0.9
  config.optimizer.learning_rate = 1.6
  config.optimizer.warmup = "5 epochs"
  config.optimizer.weight_decay = 4e-5
  # The biases of squeeze-excite and of the logits do decay.
  config.optimizer.decay_exclude = (r"norm/(scale|bias)",)
  config.ema.decay = 0.9999
  return config


def _timm(depth: int) -> ml_collections.ConfigDict:
  """Timm's network and evaluation, for training the paper's recipe."""
  name = f"resnetrs{depth}"
  setting = resnet_rs_scaling.regularised(depth, models.image_size(name))
  config = _recipe(name, setting)
  config.data.eval_transform = f"resize_center_crop(ratio={_TIMM_CROPS[depth]})"
  return config


def _study(steps: int) -> ml_collections.ConfigDict:
  """Table 1: ResNet-200 with the first `steps` ingredients."""
  setting = resnet_rs_scaling.regularised(200, 256)
  config = _recipe("resnetrs_200_256", setting)
  without = (
    _without_cosine,
    _without_long_training,
    _without_moving_average,
    _without_label_smoothing,
    _without_stochastic_depth,
    _without_rand_augment,
    _without_dropout,
    _without_small_weight_decay,
    _without_squeeze_excite,
    _without_resnet_d,
  )
  for remove in without[steps:]:
    remove(config)
  return config


def _without_cosine(config):
  config.optimizer.schedule = "stepwise"
  config.optimizer.boundaries = ("30 epochs", "60 epochs", "80 epochs")


def _without_long_training(config):
  config.train_for = "90 epochs"


def _without_moving_average(config):
  config.ema.decay = 0.0
  # Nothing else averages the statistics then.
  config.model.batch_norm_momentum = 0.9


def _without_label_smoothing(config):
  config.loss.label_smoothing = 0.0


def _without_stochastic_depth(config):
  config.model.stochastic_depth_rate = 0.0


def _without_rand_augment(config):
  config.data.train_transform = imagenet.CROPPED


def _without_dropout(config):
  config.model.dropout_rate = 0.0


def _without_small_weight_decay(config):
  config.optimizer.weight_decay = 1e-4


def _without_squeeze_excite(config):
  config.model.squeeze_ratio = 0.0


def _without_resnet_d(config):
  config.model.stem = "conv7"
  config.model.shortcut = "conv"


def _digits() -> ml_collections.ConfigDict:
  config = digits.recipe()
  config.model = ml_collections.ConfigDict(
    dict(
      name="resnetrs_50_160",
      stem_widths=(16, 16, 32),
      widths=(16, 32, 64),
      depths=(1, 1, 1),
      batch_norm_momentum=0.0,
      stochastic_depth_rate=0.0,
      dropout_rate=0.1,
    )
  )
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 0.1
  config.optimizer.final_learning_rate = 0.0
  config.optimizer.weight_decay = 1e-4
  config.optimizer.decay_exclude = (r"norm/(scale|bias)",)
  config.optimizer.clip_norm = 0.0
  return config


def _variants():
  variants = {"digits": _digits}
  for setting in resnet_rs_scaling.PUBLISHED:
    depth, size = setting.depth, setting.resolution
    for flavour in ("", "_swish"):
      model = f"resnetrs_{depth}{flavour}_{size}"
      if model in models.list():
        variants[f"{depth}_{size}{flavour}"] = lambda m=model, s=setting: (
          _recipe(m, s)
        )
  for depth in _TIMM_CROPS:
    variants[f"timm_{depth}"] = lambda d=depth: _timm(d)
  for steps in range(STUDY_STEPS + 1):
    variants[f"study_{steps}"] = lambda n=steps: _study(n)
  return variants


VARIANTS = _variants()
