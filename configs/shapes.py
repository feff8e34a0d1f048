"""Detection of shapes, and a few shots of them in other colours.

The domain shift of "Remedying Target-Domain Astigmatism for Cross-Domain
Few-Shot Object Detection" (arXiv 2603.18541), small: a detector of discs,
squares, triangles and rings in bright colours is tuned on ten scenes of pale,
striped ones.

  python train.py --config=configs/shapes.py --workdir=runs/shapes
  python train.py --config=configs/shapes.py:few_shot --workdir=runs/few_shot \\
    --config.init.weights=runs/shapes

Variants:
- `source` (the default).
- `few_shot`: on the other domain; --config.model.refinement=fused puts
  prototypes of the ten scenes into the features.
"""

import ml_collections

from configs import common

VARIANTS = ("source", "few_shot")
SHOTS = 10


def get_config(variant: str = "source") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("shapes", variant, VARIANTS)
  config = common.get_config("detection")
  config.batch_size = 16
  config.eval_batch_size = 50
  common.schedule(config, steps=1000, every=1000, rates=(1e-3, 1e-5))
  config.optimizer.weight_decay = 0.05
  config.optimizer.clip_norm = 1.0
  if variant == "few_shot":
    config.data.domain = "target"
    # A batch is all shots, so that prototypes are of all of them.
    config.data.train_examples = config.batch_size = SHOTS
    common.schedule(config, steps=60, every=60)
    config.optimizer.learning_rate = 3e-4
  return config
