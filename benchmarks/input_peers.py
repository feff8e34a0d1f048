"""tf.data and timm doing what `benchmarks.input_pipeline` measures.

Each function returns, for a stage, an endless iterator of batches made by one
thread.
"""

import atexit
import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from benchmarks import photographs
from tools import torch_imports

# TensorFlow's Inception crop, as EfficientNet's and ResNet-RS's code call it.
_CROP = dict(
  min_object_covered=0.1,
  aspect_ratio_range=(3 / 4, 4 / 3),
  area_range=(0.08, 1.0),
  max_attempts=10,
  use_image_if_no_bounding_boxes=True,
)


def tensorflow_batches(
  stage: str, jpegs: Sequence[bytes], size: int, batch_size: int
) -> Iterator[Any] | None:
  """tf.data's batches, or None where it has no such stage.

  Raises:
    ImportError: if TensorFlow is not installed.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  import tensorflow as tf

  def crop(data, antialias):
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(data), tf.constant([[[0.0, 0, 1, 1]]]), **_CROP
    )
    window = tf.concat([begin[:2], extent[:2]], axis=0)
    image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.resize(image, (size, size), "bicubic", antialias=antialias)
    return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)

  functions = {
    "decode": lambda data: tf.io.decode_jpeg(data, channels=3),
    "crop": lambda data: crop(data, antialias=False),
    "crop antialias": lambda data: crop(data, antialias=True),
    "pipeline": lambda example: tf.image.random_flip_left_right(
      crop(example["image"], antialias=False)
    ),
  }
  if stage not in functions:
    return None
  if stage == "pipeline":
    dataset = _read_records().repeat().shuffle(photographs.DISTINCT)
  else:
    dataset = tf.data.Dataset.from_tensor_slices(list(jpegs)).repeat()
  options = tf.data.Options()
  # Nothing is made ahead, which would count as time of the next turn.
  options.autotune.enabled = False
  options.experimental_optimization.inject_prefetch = False
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  dataset = dataset.map(functions[stage]).batch(batch_size)
  return iter(dataset.with_options(options))


def _read_records() -> Any:
  """The data set through TFDS from TFRecord, with images left encoded."""
  # Held open by the iterator, which lives as long as the process.
  data_dir = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, data_dir)
  builder = photographs.prepare(data_dir, "tfrecord")
  return builder.as_dataset(
    split="train",
    decoders={"image": tfds.decode.SkipDecoding()},
    read_config=tfds.ReadConfig(try_autocache=False),
  )


def timm_batches(
  stage: str, jpegs: Sequence[bytes], size: int, batch_size: int
) -> Iterator[Any] | None:
  """timm's batches, by its transforms and its loader's collate function.

  None where it has no such stage: timm always resizes with antialias.

  Raises:
    ImportError: if timm is not installed.
  """
  torch, _ = torch_imports.import_timm()
  from timm.data import loader, transforms_factory

  torch.set_num_threads(1)
  options = dict(interpolation="bicubic", use_prefetcher=True)
  policy = "rand-m15-n2-p1.0-mmax15"
  off = dict(hflip=0.0, color_jitter=None)
  makers = {
    "decode": lambda: np.asarray,
    "crop antialias": lambda: transforms_factory.transforms_imagenet_train(
      size, **off, **options
    ),
    "augment": lambda: transforms_factory.transforms_imagenet_train(
      size, hflip=0.5, color_jitter=None, auto_augment=policy, **options
    ),
    "pipeline antialias": lambda: transforms_factory.transforms_imagenet_train(
      size, hflip=0.5, color_jitter=None, **options
    ),
  }
  if stage not in makers:
    return None
  transform = makers[stage]()

  def batches():
    examples = itertools.cycle(jpegs)
    while True:
      yield loader.fast_collate(
        [
          (transform(Image.open(io.BytesIO(data)).convert("RGB")), 0)
          for data in itertools.islice(examples, batch_size)
        ]
      )

  return batches()
