"""Compiles the steps of an experiment, and says how large they are."""

import time
from typing import Any

import jax

from experiment.build import Experiment
from training import console, evaluation


def compile_steps(
  experiment: Experiment, evaluated: evaluation.SplitEvaluation
) -> Any:
  """Compiles both steps, and prints how large they are.

  Args:
    experiment: with the training step.
    evaluated: with the other, which it uses compiled from now on.

  Returns:
    The training step, for batches of the config's size only.
  """
  config, state, task = experiment.config, experiment.state, experiment.task
  train = experiment.train_step.lower(state, experiment.batch)
  evaluate = evaluated.lower(state.variables())
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  units = config.eval_batch_size * task.units_per_example
  forward = evaluate.cost_analysis()["flops"] / units
  step = count_step_flops(experiment, train)
  console.say(
    f"{config.model.name}: {parameters:,} parameters, "
    f"{forward / 1e9:.3g} GFLOP forward per {task.unit}, "
    f"{step / 1e9:.3g} GFLOP per training step"
  )
  for line in experiment.rules:
    console.say(line)
  mesh = experiment.mesh
  sizes = " x ".join(f"{n} {axis}" for axis, n in mesh.shape.items() if n > 1)
  console.say(
    f"{mesh.size} device(s) {mesh.devices.flat[0].device_kind}"
    + (f": {sizes}" if sizes else "")
  )
  started = time.perf_counter()
  evaluated.use(evaluate.compile())
  compiled = train.compile()
  console.say(f"compiled in {time.perf_counter() - started:.0f} s")
  return compiled


def count_step_flops(
  experiment: Experiment, lowered: jax.stages.Lowered
) -> float:
  """Counts a training step's floating-point operations, of the whole batch.

  Args:
    experiment: with the config.
    lowered: its training step.
  """
  if experiment.config.accumulation_steps > 1:
    lowered = experiment.whole_step.lower(experiment.state, experiment.batch)
  return lowered.cost_analysis()["flops"]
