"""How good the images of a generator are: samples, made and measured."""

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

import sample_metrics
from input_pipeline import latents as latent_data
from models import masked_sampling
from sample_metrics import features as feature_networks
from sample_metrics import statistics as statistics_files
from tasks import image_decoding, image_options, image_sampling
from tasks.base import Progress

# Options of `measure` for `eval.py`: each with a default and what it is.
OPTIONS: Mapping[str, tuple[Any, str]] = {
  "num_samples": (
    -1,
    "How many images are made and measured; 0: the loss alone; -1: as the "
    "run's config says.",
  ),
  "guidance": (
    "",
    "As for sample.py; empty: as the run's config says.",
  ),
  "steps": (0, "Steps that tokens come in; 0: as the run's config says."),
  "seed": (0, "Of the images."),
  "features": (
    "",
    "What images are seen through: the workdir of a classifier of ours, or "
    "inception:<weights>.pth; empty: as the run's config says.",
  ),
  "statistics": (
    "",
    "A file of tools/reference_statistics.py; empty: as the run's config says.",
  ),
}


def options_of(
  config: ml_collections.ConfigDict, **given: Any
) -> dict[str, Any]:
  """Fills options that were not given from a config.

  Args:
    config: of a run.
    **given: of OPTIONS, with their values.

  Returns:
    All of OPTIONS; guidance as a number, or one for each step.

  Raises:
    ValueError: for an option that does not fit.
  """
  fields = {**config.evaluation, "steps": config.sampling.steps}
  options = filled(OPTIONS, fields, given)
  options["guidance"] = (
    image_options.parse_guidance(options["guidance"])
    if options["guidance"]
    else config.sampling.guidance
  )
  plan = masked_sampling.schedule(options["steps"], options["steps"])
  masked_sampling.guidance_weights(
    options["guidance"], config.sampling.min_guidance, plan, options["steps"]
  )
  return options


def filled(
  known: Mapping[str, tuple[Any, str]],
  fields: Mapping[str, Any],
  given: Mapping[str, Any],
) -> dict[str, Any]:
  """Fills options of samples that are as by default from a config.

  Args:
    known: the default of each option, and what it is; "num_samples" is one.
    fields: of a config, by the names of options.
    given: options with their values.

  Raises:
    ValueError: for an option that there is not, or a negative number of
      samples.
  """
  for name in given:
    if name not in known:
      raise ValueError(f"{name} is none of {', '.join(known)}.")
  options = {name: default for name, (default, _) in known.items()} | given
  for name, value in fields.items():
    if options[name] == known[name][0]:
      options[name] = value
  if options["num_samples"] < 0:
    raise ValueError(f"num_samples={options['num_samples']} must be 0 or more.")
  return options


def measure(
  task: Any,
  variables: Mapping[str, Any],
  options: Mapping[str, Any],
  progress: Progress,
) -> dict[str, Any]:
  """Makes images and measures them.

  Classes come in turn, as many images of each; texts are those of the
  evaluation split, in order.

  Args:
    task: of the run.
    variables: of its model.
    options: what `options_of` returned.
    progress: what is shown of it.

  Returns:
    `class_accuracy`, where there are classes, `frechet_distance` and what else
    `sample_metrics.Measurement` has; and guidance, steps, flow_steps and seed.

  Raises:
    ValueError: for a feature network or statistics that do not fit.
  """
  data = image_data(task.config.data)
  features = feature_networks.create(options["features"], data)
  reference = (
    statistics_files.load(options["statistics"], features)
    if options["statistics"]
    else sample_metrics.of_split(data, features)
  )
  measurement = sample_metrics.Measurement(features, reference)
  given, lengths, labels = conditions(task, options["num_samples"])
  chosen = {name: options[name] for name in ("guidance", "steps", "seed")}
  sampling = {**task.config.sampling, **chosen}
  start = 0
  for made in image_sampling.batches(
    task.model,
    variables,
    given,
    image_decoding.create(task.model, variables, task.info),
    lengths=lengths,
    batch_size=task.config.eval_batch_size,
    progress=progress,
    **sampling,
  ):
    rows = slice(start, start + len(made.images))
    measurement.update(made.images, None if labels is None else labels[rows])
    start = rows.stop
  return {**measurement.result(), **sampling}


def describe(result: Mapping[str, Any]) -> list[str]:
  """What was measured, in words."""
  accuracy = result.get("class_accuracy")
  parts = [] if accuracy is None else [f"class accuracy {accuracy:.2%}"]
  return [
    *parts,
    f"Frechet distance {result['frechet_distance']:.3f} of "
    f"{result['samples']} samples with guidance {result['guidance']} in "
    f"{result['steps']} steps",
  ]


def image_data(data: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The config of the real images, those that became latents if some did."""
  data = data.copy_and_resolve_references()
  if data.latents:
    data.update(latent_data.encoded_fields(data))
  return data


def conditions(
  task: Any, count: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
  """What `count` images shall be of, lengths of texts, and their classes."""
  if task.info.text_shape is None:
    labels = np.arange(count, dtype=np.int32) % task.model.num_classes
    return labels, None, labels
  texts, lengths = [], []
  while sum(map(len, texts)) < count:
    for batch in task.room.eval_batches(
      task.config.data, batch_size=task.config.eval_batch_size
    ):
      there = batch["mask"] > 0
      texts.append(batch["text"][there])
      lengths.append(batch["text_length"][there])
  return np.concatenate(texts)[:count], np.concatenate(lengths)[:count], None
