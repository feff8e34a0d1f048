"""Labels of sequences that are made up, by the name of their source.

  python train.py --config=configs/sequences.py:mqar --workdir=runs/mqar

Each trains in a minute or less on two cores. Variants:
- `digits`: which of ten a handwritten digit is, 16 patches of 2 x 2 pixels.
- `mqar`: multi-query associative recall, which value came with a key.
- `near_and_far`: repeat the last token, or recall what came with a key.
"""

import ml_collections

from configs import common


def get_config(variant: str = "mqar") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("sequences", variant, VARIANTS)
  config = common.get_config("sequence_labeling")
  config.data.source = variant
  config.optimizer.clip_norm = 1.0
  config.optimizer.weight_decay = 0.1
  config.optimizer.decay_exclude = ("scale", "bias")
  config.optimizer.warmup = "5 percent"
  VARIANTS[variant](config)
  return config


def _mqar(config: ml_collections.ConfigDict) -> None:
  config.data.options.update(length=64, pairs=(4, 8), vocabulary_size=128)
  config.model.update(dict(width=64, depth=2, heads=2, mlp_width=128))
  config.batch_size = 64
  config.eval_batch_size = 100
  config.train_for = "600 steps"
  config.evaluate_every = "200 steps"
  config.checkpoint.every = "200 steps"
  config.optimizer.learning_rate = 3e-3
  config.optimizer.final_learning_rate = 1e-4


def _digits(config: ml_collections.ConfigDict) -> None:
  config.data.update(train_examples=1437, eval_examples=1000)
  config.model.update(dict(width=32, depth=6, heads=4, mlp="gelu"))
  config.model.update(dict(causal=False, tied_head=False, scan_layers=True))
  config.model.update(dict(position_encoding="learned", max_length=16))
  config.model.update(dict(norm="layer_norm", mlp_bias=True))
  config.batch_size = 32
  config.eval_batch_size = 200
  config.train_for = "400 steps"
  config.evaluate_every = "400 steps"
  config.checkpoint.every = "400 steps"
  config.optimizer.learning_rate = 3e-3
  config.optimizer.final_learning_rate = 1e-4


def _near_and_far(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(width=64, depth=4, heads=4, mlp_width=64))
  # Within 300 steps heads find places with this, and not with 0.02.
  config.model.init_scale = 0.125
  config.batch_size = 32
  config.eval_batch_size = 100
  config.train_for = "300 steps"
  config.evaluate_every = "100 steps"
  config.checkpoint.every = "100 steps"
  config.optimizer.learning_rate = 3e-3
  config.optimizer.final_learning_rate = 1e-4


VARIANTS = {
  "digits": _digits,
  "mqar": _mqar,
  "near_and_far": _near_and_far,
}
