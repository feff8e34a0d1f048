"""What diffusion learns: images, latents or videos, with labels or texts.

Images and latents are those of `input_pipeline.latents`. Videos are of digits
that move, made as they are asked for (`moving_digits`).
"""

from input_pipeline.visual.config import default_config, is_video
from input_pipeline.visual.pipeline import (
  DatasetInfo,
  dataset_info,
  eval_batches,
  num_train_examples,
  train_iterator,
)

__all__ = [
  "DatasetInfo",
  "dataset_info",
  "default_config",
  "eval_batches",
  "is_video",
  "num_train_examples",
  "train_iterator",
]
