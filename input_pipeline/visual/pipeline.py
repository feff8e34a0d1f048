"""Batches of images, latents or videos."""

import dataclasses
from collections.abc import Sequence

import grain
import ml_collections

from input_pipeline import latents, stream
from input_pipeline.visual.config import check_video, is_video
from input_pipeline.visual.moving_digits import MovingDigits, MovingDigitsReader

_STREAMS = {"train": "train", "eval": "test"}


@dataclasses.dataclass(frozen=True)
class DatasetInfo(latents.DatasetInfo):
  """What must be known of a data set; `image_shape` may begin with frames.

  Attributes:
    labels: how many an example has.
  """

  labels: int = 1


def dataset_info(config: ml_collections.ConfigDict) -> DatasetInfo:
  """Opens the evaluation split, and no other, to see.

  Raises:
    ValueError: for data that are not there or fields that do not fit.
  """
  if not is_video(config):
    return DatasetInfo(**vars(latents.dataset_info(config)))
  check_video(config)
  return DatasetInfo(
    num_eval_examples=config.video.eval_examples,
    class_names=tuple("0123456789"),
    image_shape=(
      config.video.frames,
      config.image_size,
      config.image_size,
      config.channels,
    ),
    num_train_examples=config.video.train_examples,
    labels=config.video.digits,
  )


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """How many examples an epoch has; opens the training split to see."""
  if is_video(config):
    return config.video.train_examples
  return latents.num_train_examples(config)


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless shuffled batches: the rows of this process.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the order and of what is random in an example.
    global_batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterator of dicts, of images and latents those of
    `latents.train_iterator`. Videos are image uint8 `[local_batch, frames,
    height, width, 1]`, label int32 `[local_batch, digits]` in ascending order,
    and mask and damaged as ever.

  Raises:
    ValueError: for rows that no batch has, and for a config that does not fit.
    DamagedImageError: as `images.train_iterator`.
  """
  if not is_video(config):
    return latents.train_iterator(
      config, seed=seed, global_batch_size=global_batch_size, rows=rows
    )
  return stream.train_iterator(
    _reader(config, "train"),
    config,
    seed=seed,
    batch_size=global_batch_size,
    rows=rows,
  )


def eval_batches(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.IterDataset:
  """Every example to evaluate once, in order: the rows of this process.

  Videos are of handwriting that training does not see, and the same whatever
  the seed of a run.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: examples in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterable of dicts as `train_iterator` has them, and index int32
    `[local_batch]`. Padding has index -1 and mask 0. It can be iterated again.

  Raises:
    ValueError, DamagedImageError: as `train_iterator`.
  """
  if not is_video(config):
    return latents.eval_batches(config, batch_size=batch_size, rows=rows)
  return stream.eval_batches(
    _reader(config, "eval"), config, batch_size=batch_size, rows=rows
  )


def _reader(
  config: ml_collections.ConfigDict, stream_name: str
) -> MovingDigitsReader:
  check_video(config)
  video = config.video
  source = MovingDigits(
    _STREAMS[stream_name],
    frames=video.frames,
    side=config.image_size,
    count=video.digits,
    speed=video.speed,
  )
  return MovingDigitsReader(source, video[f"{stream_name}_examples"])
