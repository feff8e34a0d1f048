"""Fine-tuning: a trained model on other classes. The recipes are our own.

Shown on digits, pretrained on 0 to 4 and fine-tuned on 5 to 9:

  python train.py --config=configs/finetune.py:digits_0_4 --workdir=runs/0_4
  python train.py --config=configs/finetune.py:digits_5_9 --workdir=runs/5_9 \\
    --config.init.weights=runs/0_4

Variants:

- `digits_0_4`: `configs/digits.py` on five classes.
- `digits_5_9`: the trunk of such a run, frozen, and a new head.
- `digits_5_9_layers`: all layers, the earlier the slower.
- the name of any model, as `maxvit_tiny_224`: all layers, the earlier the
  slower, on a data set that `--config.data.name` names, from
  `--config.init.weights`, which may be `timm:<name>`.

`--config.frozen_trunk=true` freezes the trunk of any of them; what remains
keeps its layers' rates.
"""

import ml_collections

import models
from configs import common, digits

VARIANTS = ("digits_0_4", "digits_5_9", "digits_5_9_layers")


def get_config(variant: str) -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is neither such a variant nor such a model.
  """
  if variant == "digits_0_4":
    config = digits.get_config()
    config.data.classes = (0, 1, 2, 3, 4)
    return config
  if variant in VARIANTS:
    return _digits_5_9(frozen=variant == "digits_5_9")
  if variant not in models.list(kind="image"):
    raise ValueError(
      f"configs/finetune.py has no variant {variant!r}; it has "
      f"{', '.join(VARIANTS)} and the names of models of images."
    )
  return _any_model(variant)


def _digits_5_9(*, frozen: bool) -> ml_collections.ConfigDict:
  config = digits.get_config()
  config.data.classes = (5, 6, 7, 8, 9)
  config.init.weights = "runs/0_4"
  # The new classes are as many as the old: their logits must not be kept.
  config.init.replace_head = True
  config.frozen_trunk = frozen
  if frozen:
    config.train_for = "40 epochs"
    config.optimizer.learning_rate = 1e-2
  else:
    config.train_for = "15 epochs"
    # Each of the four layers half as fast as the next.
    config.optimizer.stem_factor = 0.5**4
  return config


def _any_model(name: str) -> ml_collections.ConfigDict:
  config = common.get_config()
  config.model.name = name
  config.init.replace_head = True
  config.init.resize_tables = True
  config.data.image_size = models.image_size(name)
  config.data.train_transform = "random_resized_crop|flip"
  config.data.eval_transform = "center_crop|resize"
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.data.num_threads = 16
  config.batch_size = config.eval_batch_size = 512
  config.train_for = "20 epochs"
  config.optimizer.learning_rate = 5e-4
  config.optimizer.warmup = "5 percent"
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip_norm = 1.0
  # Of maxvit_tiny_224's 12 layers each learns 0.75 times as fast as the next.
  config.optimizer.stem_factor = 0.75**12
  config.loss.label_smoothing = 0.1
  return config
