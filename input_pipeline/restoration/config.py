"""The fields of `config.data` for pairs of degraded and clean images."""

import ml_collections
from ml_collections import config_dict

from input_pipeline import checks, stream

FOLDER = "folder"


def default_config() -> ml_collections.ConfigDict:
  """Photographs that come with packages, at half their resolution."""
  config = ml_collections.ConfigDict()
  # "photographs", "folder", or any prepared TFDS data set with images called
  # lr and hr, such as "div2k/bicubic_x2", or only image.
  config.name = "photographs"
  # Of name="folder": what to train on and what to evaluate. Each has
  # NAME_HR.png and NAME_LR.png, which are pairs, or clean images of any name.
  config.train_folder = ""
  config.folder = ""
  # Of TFDS: None is $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
  config.data_dir = config_dict.placeholder(str)
  # Of TFDS, slices too: "train[:90%]" and "train[90%:]".
  config.train_split = "train"
  config.eval_split = "validation"
  config.scale = 2  # Sides of a clean image over those of a degraded one.
  config.patch_size = 48  # Pixels of a degraded patch; clean ones are larger.
  # What makes degraded images of clean ones; pairs have theirs. Each is a chain
  # such as "bicubic|noise(sigma=5)", see `degradations.py`. Training draws one
  # for each patch, and evaluation has every image with each.
  config.degradations = ("bicubic",)
  config.flips = True  # Left and right, both images alike.
  config.rotations = True  # By quarters of a turn, likewise.
  config.repeat = 100  # Patches of each image in an epoch.
  # Threads that read ahead, and processes with as many each; see
  # `input_pipeline.stream`.
  config.num_threads = 1
  config.num_workers = 0
  return config


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for fields of which no pipeline can be made.

  Folders, data sets and degradations are checked where they are opened.
  """
  stream.check_reading(config)
  for name in ("scale", "patch_size", "repeat"):
    checks.check_integer(name, config[name], 1)
  for name in ("flips", "rotations"):
    if not isinstance(config[name], bool):
      raise ValueError(
        f"{name} is {config[name]!r}, but must be True or False."
      )
  if isinstance(config.degradations, str):
    raise ValueError(
      f"degradations is {config.degradations!r}, but must be a tuple of "
      f"strings: ({config.degradations!r},)."
    )
  if config.name != FOLDER:
    for name in ("train_folder", "folder"):
      if config[name]:
        raise ValueError(
          f"{name} is {config[name]!r}, but name={config.name!r} reads no "
          f"folder: set name={FOLDER!r} too, or leave it empty."
        )
