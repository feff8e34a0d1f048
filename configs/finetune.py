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

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

import models
from configs import common, digits
from training import paths

# The first components of each kind of layer's parameters, in all families, from
# the images on.
_LAYERS = (
  r"(trunk/)?stem",
  r"(trunk/)?stage_\d+/block_\d+(?=/)",
  r"scale_tokens(?=/)",
  r"scale_block_\d+(?=/)",
  r"patch_tokens(?=/)",
  r"patch_layer_\d+(?=/)",
  r"final_conv(?=/)",
)

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
  if variant not in models.list():
    raise ValueError(
      f"configs/finetune.py has no variant {variant!r}; it has "
      f"{', '.join(VARIANTS)} and the names of models."
    )
  return _any_model(variant)


def layer_rules(
  model: nn.Module, images: tuple[int, int, int, int], stem_factor: float
) -> tuple[tuple[str, float], ...]:
  """Learning-rate rules by which each layer learns slower than the next.

  Args:
    model: whose layers these are: the stem, each block, and each of what makes
      or ends tokens between blocks.
    images: the shape of what the model is applied to.
    stem_factor: of the stem's learning rate against the head's, for which there
      is no rule. The ratio from layer to layer is constant, and follows from
      it: one given would stop the stem of a deep model.

  Returns:
    Rules for `optimizer.learning_rate_rules`, the stem's first, which match
    every parameter but the head's.
  """
  parameters = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct(images, jnp.float32)
  )["params"]
  found = filter(None, map(_layer, paths.flatten_with_names(parameters)))
  layers = sorted(set(found))
  return tuple(
    (pattern, stem_factor ** (1 - index / len(layers)))
    for index, (_, pattern) in enumerate(layers)
  )


def _layer(name: str) -> tuple[tuple[int, ...], str] | None:
  """Returns where a parameter's layer lies, to sort by, and its pattern."""
  for kind, pattern in enumerate(_LAYERS):
    if match := re.match(pattern, name):
      numbers = map(int, re.findall(r"\d+", match[0]))
      # A stem may be several modules, as stem_conv and stem_pool.
      return (kind, *numbers), match[0] + ("" if kind else "(_.+)?")
  return None


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
    side, channels = config.data.image_size, config.data.channels
    fields = config.model.to_dict()
    config.optimizer.learning_rate_rules = layer_rules(
      models.create(fields.pop("name"), **fields),
      (1, side, side, channels),
      stem_factor=0.5**4,
    )
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
  side = config.data.image_size
  # Of maxvit_tiny_224's 12 layers each learns 0.75 times as fast as the next.
  config.optimizer.learning_rate_rules = layer_rules(
    models.create(name), (1, side, side, 3), stem_factor=0.75**12
  )
  config.loss.label_smoothing = 0.1
  return config
