"""Trains what studies need many small ones of: the step, and nothing beside it.

`train.train_and_evaluate` compiles an evaluation, writes checkpoints and draws
curves, which takes longer than the training of a model of some thousand
parameters. This is its step, on its batches, from its initial state.
"""

import contextlib
from typing import Any

import jax
import ml_collections
from etils import epath

import experiment
import tasks
from experiment import batches, weights
from tools import array_training, study
from training import evaluation


def trained(
  config: ml_collections.ConfigDict, folder: epath.Path
) -> tuple[tasks.Task, dict[str, Any]]:
  """Trains a model, or reads the one that an earlier call trained.

  Args:
    config: of a run; its evaluations and checkpoints are not looked at.
    folder: where a file for each config is kept.

  Returns:
    (task, variables): the task, with the model, and host arrays.
  """
  task = experiment.create_evaluation(config).task
  path = folder / f"{study.digest(config)}.msgpack"
  make = lambda: jax.device_get(_train(config))
  return task, array_training.kept(path, make)


def _train(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The variables after all steps."""
  setup = experiment.create(config)
  stream = batches.create_train_batches(setup)
  with jax.set_mesh(setup.mesh), contextlib.closing(stream):
    state = weights.initial_state(setup)
    for _ in range(setup.clock.total_steps):
      rows = next(stream)
      batch = {name: rows[name] for name in setup.batch}
      state, _ = setup.train_step(
        state, evaluation.put_batch(batch, setup.mesh)
      )
    return state.variables()
