"""How good what a diffusion model makes is: samples, made and measured."""

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

import sample_metrics
from input_pipeline import visual
from sample_metrics import features as feature_networks
from sample_metrics import frames, motion
from sample_metrics import statistics as statistics_files
from tasks import (
  diffusion_options,
  diffusion_sampling,
  image_decoding,
  sample_evaluation,
)
from tasks.base import Progress

_SAMPLING = ("guidance", "steps", "solver", "method", "method_options")
# Options of `measure` for `eval.py`: each with a default and what it is.
OPTIONS: Mapping[str, tuple[Any, str]] = {
  "num_samples": (
    -1,
    "How many samples are made and measured; 0: the loss alone; -1: as the "
    "run's config says.",
  ),
  "seed": (0, "Of the samples."),
  **{name: diffusion_sampling.OPTIONS[name] for name in _SAMPLING},
  "features": sample_evaluation.OPTIONS["features"],
  "statistics": sample_evaluation.OPTIONS["statistics"],
}


def options_of(
  config: ml_collections.ConfigDict, **given: Any
) -> dict[str, Any]:
  """Fills options that were not given from a config.

  Args:
    config: of a run.
    **given: of OPTIONS, with their values.

  Returns:
    All of OPTIONS, guidance as a number and method_options as a dict.

  Raises:
    ValueError: for an option that does not fit.
  """
  options = sample_evaluation.filled(OPTIONS, config.evaluation, given)
  options |= diffusion_options.of_sampling(
    config.sampling,
    **{name: options[name] for name in ("guidance", "steps", "solver")},
  )
  options["method_options"] = diffusion_options.parse_options(
    options["method_options"]
  )
  return options


class Quality:
  """Measures samples of a task; its network and real data are made once."""

  def __init__(
    self, data: ml_collections.ConfigDict, features: str = "", file: str = ""
  ):
    """Makes the feature network, and looks at the real data.

    Args:
      data: `config.data` of what was learned.
      features: of `sample_metrics.features.create`.
      file: of statistics; of `data` if empty.

    Raises:
      ValueError: for a feature network or statistics that do not fit.
    """
    self._video = visual.is_video(data)
    data = sample_evaluation.image_data(data)
    self.features = feature_networks.create(features, data)
    self._reference = (
      statistics_files.load(file, self.features)
      if file
      else sample_metrics.of_split(data, self.features)
    )

  def __call__(
    self, pixels: np.ndarray, labels: np.ndarray | None
  ) -> dict[str, Any]:
    """Measures samples.

    Args:
      pixels: uint8 [n, (frames,) height, width, channels].
      labels: int [n], or [n, labels] of videos; None if there are none.

    Returns:
      What `sample_metrics.Measurement` has, of videos for their frames; and of
      videos `motion_consistency` and `motion_amount`, see
      `sample_metrics.motion`.
    """
    moved = {}
    if self._video:
      found = motion.motion(pixels)
      moved = {
        "motion_consistency": found.consistency,
        "motion_amount": found.amount,
      }
      if labels is not None:
        labels = frames.set_numbers(labels.reshape(len(labels), -1))
        labels = labels.repeat(pixels.shape[1])
      pixels = pixels.reshape(-1, *pixels.shape[2:])
    measured = sample_metrics.measure(
      pixels, labels, self.features, self._reference
    )
    return measured | moved


def measure(
  task: Any,
  variables: Mapping[str, Any],
  options: Mapping[str, Any],
  progress: Progress,
) -> dict[str, Any]:
  """Makes samples and measures them.

  Classes come in turn, as many of each; sets of several are drawn, the same
  whatever the seed; texts are those of the evaluation split, in order.

  Args:
    task: of the run.
    variables: of its model.
    options: what `options_of` returned.
    progress: what is shown of it.

  Returns:
    What `Quality` has, with guidance, steps, solver, method and seed.

  Raises:
    ValueError: for a feature network or statistics that do not fit.
  """
  quality = Quality(
    task.config.data, options["features"], options["statistics"]
  )
  count = options["num_samples"]
  condition = conditions(task, count)
  sampling = {name: options[name] for name in ("seed", *_SAMPLING)}
  made = diffusion_sampling.samples(
    task.model,
    variables,
    task.path,
    condition,
    rows=count,
    batch_size=task.config.eval_batch_size,
    progress=progress,
    **sampling,
  )
  decode = image_decoding.create(task.model, variables, task.info)
  rows = task.config.eval_batch_size
  pixels = [decode(made[n : n + rows]) for n in range(0, count, rows)]
  result = quality(np.concatenate(pixels), condition.get("label"))
  return {**result, **sampling}


def describe(result: Mapping[str, Any]) -> list[str]:
  """What was measured, in words."""
  parts = []
  if "class_accuracy" in result:
    parts.append(f"class accuracy {result['class_accuracy']:.2%}")
  if "motion_consistency" in result:
    parts.append(f"motion consistency {result['motion_consistency']:.3f}")
  method = "" if result["method"] == "full" else f", method {result['method']}"
  return [
    *parts,
    f"Frechet distance {result['frechet_distance']:.3f} of "
    f"{result['samples']} images with guidance {result['guidance']} in "
    f"{result['steps']} steps{method}",
  ]


def conditions(task: Any, count: int) -> dict[str, np.ndarray]:
  """What `count` samples shall be of, by the names of the model's arguments."""
  info = task.info
  if info.text_shape is not None:
    given, lengths, _ = sample_evaluation.conditions(task, count)
    return {"text": given, "text_length": lengths}
  classes = len(info.class_names)
  if info.labels == 1:
    return {"label": np.arange(count, dtype=np.int32) % classes}
  drawn = np.random.default_rng(0).integers(classes, size=(count, info.labels))
  return {"label": np.sort(drawn, axis=1).astype(np.int32)}
