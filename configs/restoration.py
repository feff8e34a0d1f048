"""What configs that restore images have in common."""

import ml_collections

from configs import common


def get_config(model: str, scale: int) -> ml_collections.ConfigDict:
  """A model on pairs of images, without a recipe.

  Args:
    model: name of the model.
    scale: by which it enlarges; 1 for the same size.
  """
  config = common.get_config("restoration")
  config.model.name = model
  config.data.scale = scale
  return config


def photographs(config: ml_collections.ConfigDict, *, steps: int) -> None:
  """The embedded run: the photographs of two packages, trained in minutes.

  Patches are degraded as `config.data.degradations` says, by default made
  smaller.

  Args:
    config: from `get_config`, changed in place.
    steps: updates.
  """
  config.data.name = "photographs"
  # Few and small, so that minutes have thousands of steps.
  config.data.patch_size = 24
  config.batch_size = 8
  config.eval_batch_size = 4
  config.optimizer.name = "adam"
  every = -(-steps // 4)
  common.schedule(
    config, steps=steps, every=every, rates=(2e-3, 1e-5), warmup="2 percent"
  )
  config.optimizer.clip_norm = 1.0
  config.ema.decay = 0.99


def df2k(config: ml_collections.ConfigDict) -> None:
  """HAT's recipe from scratch on DIV2K and Flickr2K (its option files).

  L1, Adam with betas 0.9 and 0.99 and no decay, batches of 32, patches of 64
  degraded pixels, 500,000 steps with the rate halved four times, an average of
  0.999. The images are a folder of yours: --config.data.train_folder and
  --config.data.folder.

  Args:
    config: from `get_config`, changed in place.
  """
  config.data.name = "folder"
  config.data.patch_size = 64
  config.data.num_threads = 16
  config.batch_size = 32
  config.train_for = "500000 steps"
  config.evaluate_every = config.checkpoint.every = "5000 steps"
  config.optimizer.name = "adam"
  config.optimizer.b2 = 0.99
  config.optimizer.learning_rate = 2e-4
  config.optimizer.schedule = "stepwise"
  config.optimizer.boundaries = tuple(
    f"{thousands}000 steps" for thousands in (250, 400, 450, 475)
  )
  config.optimizer.decay_factor = 0.5
  config.ema.decay = 0.999
  config.ema.warmup = False
