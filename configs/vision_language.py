r"""Questions about images, answered by a ViT and a decoder.

  python train.py --config=configs/vision_language.py:digits_grid \
    --workdir=runs/digits_grid

Variants, of digits on a grid of 4 x 4:
- `digits_grid`: 16 tokens, a digit each, and short questions of all kinds,
  lists too. A place is told right in 94.7 % of images of unseen handwriting,
  10.0 % if it is shown another image; absent digits are said to be there in
  9.5 % (docs/vision_language.md; one seed), after two minutes on two cores.
- `digits_grid_compressed`: 4 tokens, each made of the mean of 4 x 4 patches.
- `digits_grid_remember`: the same, which look at the features of their own
  patches after layers 1, 2 and 3 (Vision Remember, arXiv 2506.03928).

How far 1500 steps take the last two has not been measured. A smaller model of 4
tokens had not begun to use the image after 800 steps of 32 images.
"""

import ml_collections

from configs import common


def get_config(variant: str = "digits_grid") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("vision_language", variant, VARIANTS)
  config = common.get_config("vision_language")
  config.model.update(VARIANTS[variant])
  config.data.train_examples = 100_000
  config.data.eval_examples = 400
  config.batch_size = 64
  config.eval_batch_size = 100
  config.train_for = "1500 steps"
  config.evaluate_every = config.checkpoint.every = "500 steps"
  config.optimizer.learning_rate = 2e-3
  config.optimizer.final_learning_rate = 1e-4
  config.optimizer.weight_decay = 0.05
  config.optimizer.decay_exclude = ("scale", "bias")
  config.optimizer.warmup = "5 percent"
  config.optimizer.clip_norm = 1.0
  if variant == "digits_grid":
    _one_digit_a_token(config)
  return config


def _one_digit_a_token(config: ml_collections.ConfigDict) -> None:
  """Fields of `digits_grid` beside the model's."""
  config.batch_size = 64
  config.train_for = "1000 steps"
  config.optimizer.learning_rate = 3e-3
  # Alone, so that no earlier answer tells it.
  config.data.eval_options = ml_collections.ConfigDict({"questions": 1})
  config.data.eval_examples = 2000
  config.data.options = ml_collections.ConfigDict(
    {
      "questions": 10,
      # By chance one of these, so that each kind has its share.
      "kinds": ("which",) * 4
      + ("how_many",) * 2
      + ("is_there",) * 2
      + ("list",),
      "listing": True,
      "repeats": False,
      "terse": True,
    }
  )


_DIGIT = {
  "depth": 3,
  "qk_norm": True,
  "vision_levels": (1,),
  "vision": {
    "width": 64,
    "depth": 1,
    "heads": 4,
    "hidden_width": 128,
    "patch_size": 8,
    "image_size": 32,
    "class_token": False,
    "position_scale": 0.5,
  },
}
_COMPRESSED = {"compression": 4}
_REMEMBER = {"remember_layers": (1, 2, 3), "remember_heads": 4}
VARIANTS = {
  "digits_grid": _DIGIT,
  "digits_grid_compressed": _COMPRESSED,
  "digits_grid_remember": {
    **_COMPRESSED,
    **_REMEMBER,
    "remember": "local",
  },
}
