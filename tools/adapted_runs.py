"""A run, and others that train parts of its model, for studies of adapters."""

import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

import experiment
import tasks
from experiment import weights
from models import insertion
from tools import study
from training import paths

Variables = dict[str, Any]


def foundation(
  config: ml_collections.ConfigDict, folder: epath.Path, name: str
) -> tuple[str, Variables]:
  """Trains the model that others begin with, or has it already.

  Args:
    config: of the run.
    folder: of all that rows and seeds share.
    name: of the study.

  Returns:
    (workdir, variables): of the run, at its end.
  """
  workdir = str(folder / f"{name}_{study.digest(config)}")
  study.train(config, workdir, show=False)
  setup = experiment.create_evaluation(config)
  with jax.set_mesh(setup.mesh):
    return workdir, weights.load_weights(setup, workdir, use_ema=False)


def adapted(
  config: ml_collections.ConfigDict, source: str, options: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """The config of a run that trains parts of a model.

  Args:
    config: of such runs.
    source: workdir of the run that it begins with.
    options: of the row: inserts of the model, trainable, and learning_rate if
      it is another.
  """
  config = config.copy_and_resolve_references()
  config.init.weights, config.init.ema = source, False
  config.model.inserts = options.get("inserts", ())
  config.trainable = options.get("trainable", ())
  if "learning_rate" in options:
    config.optimizer.learning_rate = options["learning_rate"]
  return config


def trained(config: ml_collections.ConfigDict) -> tuple[Variables, int]:
  """Trains in a folder that is not kept.

  Returns:
    (variables, count): at the end, and how many parameters were trained.
  """
  with tempfile.TemporaryDirectory() as workdir:
    state, _ = study.train(config, workdir, show=False)
  names = paths.flatten_with_names(state.params)
  patterns = config.trainable
  count = sum(
    leaf.size
    for name, leaf in names.items()
    if not patterns or paths.first_match(patterns, name) is not None
  )
  return state.variables(), count


def evaluated(
  config: ml_collections.ConfigDict,
  variables: Variables,
  **changes: Any,
) -> tuple[tasks.Task, dict[str, Any]]:
  """Evaluates variables as a config says.

  Args:
    config: of a run.
    variables: of its model.
    **changes: options of the model's gates, as hard=True.

  Returns:
    (task, metrics): with the model, and what its evaluation gave.
  """
  setup = experiment.create_evaluation(config)
  task = setup.task
  if changes:
    task.model = insertion.changed(task.model, "tau_gate", **changes)
  with jax.set_mesh(setup.mesh):
    result = task.evaluate(variables, setup.mesh, lambda batches, _: batches)
  return task, result
