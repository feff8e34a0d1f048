"""Jobs that the training loop can do, one file a task.

`tasks.base.Task` is what a task is. To add one, add it to TASKS.
"""

import importlib
from typing import Any

import ml_collections

from tasks.base import Shown, Task

# By the name that `config.task` has: module and class. They are imported when
# they are used, since each brings its models and its data.
TASKS = {
  "autoencoding": ("tasks.autoencoding", "Autoencoding"),
  "classification": ("tasks.classification", "Classification"),
  "detection": ("tasks.detection", "Detection"),
  "diffusion": ("tasks.diffusion", "Diffusion"),
  "distillation": ("tasks.distillation", "Distillation"),
  "forecasting": ("tasks.forecasting", "Forecasting"),
  "language_modeling": ("tasks.language_modeling", "LanguageModeling"),
  "masked_diffusion": ("tasks.masked_diffusion", "MaskedDiffusion"),
  "masked_generation": ("tasks.masked_generation", "MaskedGeneration"),
  "pair_completion": ("tasks.pair_completion", "PairCompletion"),
  "potentials": ("tasks.potentials", "Potentials"),
  "probing": ("tasks.probing", "Probing"),
  "restoration": ("tasks.restoration", "Restoration"),
  "routing": ("tasks.routing", "Routing"),
  "sequence_labeling": ("tasks.sequence_labeling", "SequenceLabeling"),
  "vision_language": ("tasks.vision_language", "VisionLanguage"),
}


def find(name: str) -> type[Task]:
  """The class of a task.

  Raises:
    ValueError: if there is no such task.
  """
  if name not in TASKS:
    raise ValueError(
      f"task={name!r} is not known; choose from {', '.join(TASKS)}."
    )
  module, cls = TASKS[name]
  return getattr(importlib.import_module(module), cls)


def create(config: ml_collections.ConfigDict, info: Any) -> Task:
  """The task of a config, with its model.

  Args:
    config: of a run.
    info: what the `dataset_info` of the task's data returned.

  Raises:
    ValueError: if there is no such task, or a field does not fit it.
  """
  return find(config.task)(config, info)


__all__ = ["TASKS", "Shown", "Task", "create", "find"]
