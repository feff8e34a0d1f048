"""What configs that train on ImageNet have in common."""

import ml_collections

from configs import common

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# The papers' TensorFlow code skips pixels where it shrinks an image.
CROPPED = "random_resized_crop(antialias=False)|flip"
RESIZED = "resize(antialias=False)"
AUGMENTED = CROPPED + "|rand_augment(layers=2,magnitude={})"


def get_config(model: str, image_size: int) -> ml_collections.ConfigDict:
  """A model on ImageNet-1k, without a recipe but for crop, flip and size.

  Args:
    model: name of the model.
    image_size: side of the images in pixels.
  """
  config = common.get_config()
  config.model.name = model
  config.data.name = "imagenet2012"
  config.data.eval_split = "validation"
  config.data.image_size = image_size
  config.data.train_transform = CROPPED
  config.data.eval_transform = f"center_crop|{RESIZED}"
  config.data.mean, config.data.std = MEAN, STD
  config.data.num_threads = 16
  config.dtype = "bfloat16"
  config.eval_batch_size = 1024
  config.evaluate_every = "5 epochs"
  return config
