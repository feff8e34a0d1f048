"""The feature network: what samples and real images are seen through."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import ml_collections
import numpy as np

from input_pipeline import visual
from sample_metrics import frames


class Features(Protocol):
  """A network that makes features of images.

  Attributes:
    spec: what a person gave to have it, see `create`.
    fingerprint: of its weights and of what becomes of an image before. Figures
      of networks with different ones do not compare.
    class_names: of its logits; None if these are not the classes of the data.
    report: figures of the network itself, to be read beside those it gives.
  """

  spec: str
  fingerprint: str
  class_names: Sequence[str] | None
  report: Mapping[str, float]

  def __call__(
    self, images: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns features float32 [n, d], and logits float32 [n, classes] or None.

    Args:
      images: uint8 [n, height, width, channels].

    Raises:
      ValueError: for images that the network is not for.
    """


def create(spec: str, data: ml_collections.ConfigDict) -> Features:
  """Makes a feature network.

  Args:
    spec: "", a small classifier that is trained now on the images of
      `data.train_split`, the same bits on one machine; the workdir of a run of
      classification; or "inception:<weights>.pth", the network of the published
      FIDs as torch-fidelity has it, with the weights that it publishes.
    data: `config.data` of the images, with the fields of `input_pipeline.
      images`, or of `input_pipeline.visual`: of videos of moving digits the
      network is one of their frames, and `spec` must be "".

  Raises:
    ValueError: if there is no such network.
  """
  if visual.is_video(data):
    if spec:
      raise ValueError(
        f"features={spec!r} is of images, but data.name={data.name!r} has "
        "videos: leave it empty for a classifier of their frames."
      )
    return frames.trained_on(data)
  # Not above: a task measures with this room, and the classifier is made by
  # `experiment`, where all tasks are. PyTorch is an extra.
  if spec.split(":")[0] == "inception":
    from sample_metrics import inception

    return inception.InceptionFeatures(spec)
  from sample_metrics import classifier

  return classifier.of_run(spec) if spec else classifier.trained_on(data)
