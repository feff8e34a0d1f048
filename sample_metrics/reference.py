"""Statistics of the real images of a split."""

from collections.abc import Iterator

import ml_collections
import numpy as np

from input_pipeline import images as image_data
from input_pipeline import visual
from sample_metrics import frames
from sample_metrics.features import Features
from sample_metrics.moments import Moments
from sample_metrics.statistics import Statistics

_ROWS = 256


def of_split(
  data: ml_collections.ConfigDict,
  features: Features,
  *,
  split: str = "",
  keep_features: bool = True,
) -> Statistics:
  """Goes through a split, as evaluation sees its images.

  Args:
    data: `config.data`, with the fields of `input_pipeline.images`, or those of
      `input_pipeline.visual` for the frames of videos.
    features: the feature network.
    split: of the data; `data.eval_split` if empty.
    keep_features: whether those of each image are kept, which precision and
      recall need.

  Raises:
    ValueError: for data that does not fit, or fewer than two images.
  """
  split = split or data.eval_split
  moments, kept = Moments(), []
  for images, _ in examples(data, split):
    made, _ = features(images)
    moments.update(made)
    if keep_features:
      kept.append(made)
  if moments.count < 2:
    raise ValueError(
      f"split {split!r} of {data.name!r} has {moments.count} images that can "
      "be read, but a covariance needs two."
    )
  return Statistics(
    mean=moments.mean,
    covariance=moments.covariance,
    count=moments.count,
    spec=features.spec,
    fingerprint=features.fingerprint,
    data=f"{data.name}, {data.image_size} pixels, {data.channels} channels",
    split=split,
    features=np.concatenate(kept).astype(np.float32) if kept else None,
  )


def examples(
  data: ml_collections.ConfigDict, split: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Batches of a split, without padding and damaged images.

  Returns:
    Pairs of images uint8 [n, height, width, channels] and labels int32 [n]; of
    videos as `frames.examples`.
  """
  if visual.is_video(data):
    yield from frames.examples(data)
    return
  config = image_data.default_config()
  for name in config:
    config[name] = data[name]
  config.eval_split = split
  for batch in image_data.eval_batches(config, batch_size=_ROWS):
    there = batch["mask"] > 0
    yield batch["image"][there], batch["label"][there]
