"""The fields of `config.data`."""

import ml_collections
from ml_collections import config_dict

from input_pipeline import checks, stream
from input_pipeline.images import decode


def default_config() -> ml_collections.ConfigDict:
  """Handwritten digits, enlarged to 32x32 and slightly moved in training."""
  config = ml_collections.ConfigDict()
  # "digits", "fake", "fashion_mnist" of Debian's package, or any prepared TFDS
  # data set, as in "imagenet2012" or "name/config:1.0.0".
  config.name = "digits"
  # None is $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
  config.data_dir = config_dict.placeholder(str)
  # TFDS slices too: "train[:90%]" and "train[90%:]".
  config.train_split = "train"
  config.eval_split = "test"
  # The feature with the label; "real_label" for ImageNet ReaL, whose images may
  # have several, and are right with any of them, or none, and do not count.
  config.label = "label"
  # Labels of the classes to keep, relabelled in this order; () keeps all.
  config.classes = ()
  config.image_size = 32  # Pixels; the images are square.
  config.channels = 3  # 1 for grey, 3 for RGB.
  # Operations of `augment.py`, applied from left to right.
  config.train_transform = "affine(rotate=10, shift=0.1, zoom=0.1)"
  config.eval_transform = "resize(method=bilinear)"
  # False: a damaged image stops the run. True: it has a zero in the mask.
  config.skip_damaged = False
  # Threads that read and transform ahead, each a batch. One is best for tiny
  # images, where Python takes the time; decoding photographs uses many.
  config.num_threads = 1
  # Processes with as many threads each; 0 has the threads in this process.
  config.num_workers = 0
  config.fake = ml_collections.ConfigDict(
    dict(
      train_examples=1024,
      test_examples=256,
      image_shape=(32, 32, 3),
      num_classes=10,
      encoding="png",  # Or "jpeg".
    )
  )
  return config


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for numbers of which no pipeline can be made.

  Transforms, splits and the data set itself are checked where they are made.
  """
  decode.check_channels(config.channels)
  checks.check_integer("image_size", config.image_size, 1)
  stream.check_reading(config)
