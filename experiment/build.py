"""A config made into objects: the one place where all packages meet.

`train.py` and `eval.py` are two stories about the same experiment.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

import input_pipeline
import models
from experiment import layer_rates
from training import (
  classification,
  console,
  durations,
  optimizers,
  paths,
  schedules,
  sharding,
  train_state,
  train_step,
)

TASKS = {"classification": classification.Classification}


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What evaluation needs of a config, known before any array exists."""

  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  info: input_pipeline.DatasetInfo
  task: Any
  init_variables: Callable[[], dict[str, Any]]
  # The variables as `jax.ShapeDtypeStruct`s with their shardings.
  variables: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment(Evaluation):
  """Everything that is known of a run before any array exists."""

  clock: durations.Clock
  train_step: Callable[[Any, Any], Any]
  init: Callable[[], train_state.TrainState]
  # The train state as `jax.ShapeDtypeStruct`s with their shardings.
  state: train_state.TrainState


def create_evaluation(config: ml_collections.ConfigDict) -> Evaluation:
  """Checks what evaluation uses of a config: mesh, data set, task and model.

  Raises:
    ValueError: for a field of these that does not fit, before any work is done.
  """
  mesh = sharding.create_mesh(config.mesh)
  sharding.check_batch_size(config.eval_batch_size, mesh, "eval_batch_size")
  info = input_pipeline.dataset_info(config.data)
  task = _create_task(config, info.num_classes)

  def init_variables() -> dict[str, Any]:
    init_key, _ = _keys(config)
    return {"batch_stats": {}} | task.init(init_key)

  init, variables = _place(init_variables, mesh, config.sharding_rules)
  return Evaluation(config, mesh, info, task, init, variables)


def create(config: ml_collections.ConfigDict) -> Experiment:
  """Checks a config and builds mesh, data set, model, task and optimizer.

  Raises:
    ValueError: for any field that does not fit, before any work is done.
  """
  evaluation = create_evaluation(config)
  mesh, task = evaluation.mesh, evaluation.task
  sharding.check_batch_size(config.batch_size, mesh, "batch_size")
  train_step.check_accumulation(
    config.batch_size, config.accumulation_steps, mesh
  )
  clock = _create_clock(config, input_pipeline.num_train_examples(config.data))
  schedule = schedules.create_schedule(config.optimizer, clock)
  names = paths.flatten_with_names(evaluation.variables["params"])
  config = layer_rates.with_layer_rules(config, names)
  tx = optimizers.create_optimizer(config.optimizer, schedule)
  if config.frozen_trunk:
    tx = optimizers.freeze(tx, task.trainable())

  def init_state() -> train_state.TrainState:
    init_key, step_key = _keys(config)
    return train_state.create_state(
      task.init(init_key), tx, step_key, use_ema=config.ema.decay > 0
    )

  init, state = _place(init_state, mesh, config.sharding_rules)
  optimizers.check_rules(config.optimizer, state.params)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  jitted_step = jax.jit(
    train_step.make_train_step(task, tx, schedule, config),
    in_shardings=(shardings, sharding.batch_sharding(mesh)),
    out_shardings=(shardings, None),
    donate_argnums=0,
  )
  return Experiment(
    **vars(evaluation),
    clock=clock,
    train_step=jitted_step,
    init=init,
    state=state,
  )


def _keys(config: ml_collections.ConfigDict) -> jax.Array:
  """The keys of the model's initialisation and of the steps."""
  return jax.random.split(jax.random.key(config.seed))


def _place(
  init: Callable[[], Any], mesh: jax.sharding.Mesh, rules: Any
) -> tuple[Callable[[], Any], Any]:
  """Returns `init` with its results on the mesh, and these as shapes."""
  shapes = jax.eval_shape(init)
  shardings = sharding.state_shardings(shapes, mesh, rules)
  placed = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )
  # Each array is made where it will live: no device ever holds them all.
  return jax.jit(init, out_shardings=shardings), placed


def _create_clock(
  config: ml_collections.ConfigDict, num_examples: int
) -> durations.Clock:
  clock = durations.Clock(num_examples, config.batch_size)
  total_steps = clock.steps(config.train_for, "train_for")
  return durations.Clock(num_examples, config.batch_size, total_steps)


def _create_task(config: ml_collections.ConfigDict, num_classes: int) -> Any:
  if config.task not in TASKS:
    raise ValueError(
      f"task={config.task!r} is not known; choose from {', '.join(TASKS)}."
    )
  overrides = config.model.to_dict()
  model = models.create(
    overrides.pop("name"),
    num_classes=num_classes,
    dtype=jax.numpy.dtype(config.dtype),
    **overrides,
  )
  return TASKS[config.task](model, config, num_classes=num_classes)


def compile_steps(experiment: Experiment) -> tuple[Any, Any]:
  """Compiles both steps, and prints how large they are.

  Returns:
    (train_step, evaluate_step), for batches of the config's sizes only.
  """
  config, state = experiment.config, experiment.state
  train = experiment.train_step.lower(
    state, batch_shapes(experiment, config.batch_size)
  )
  evaluate = jax.jit(experiment.task.evaluate).lower(
    state.variables(), batch_shapes(experiment, config.eval_batch_size)
  )
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  forward = evaluate.cost_analysis()["flops"] / config.eval_batch_size
  step = train.cost_analysis()["flops"]
  console.say(
    f"{config.model.name}: {parameters:,} parameters, "
    f"{forward / 1e9:.3g} GFLOP forward per image, "
    f"{step / 1e9:.3g} GFLOP per training step"
  )
  mesh = " x ".join(f"{n} {axis}" for axis, n in experiment.mesh.shape.items())
  console.say(
    f"{jax.device_count()} device(s) {jax.devices()[0].device_kind}: {mesh}"
  )
  started = time.perf_counter()
  compiled = train.compile(), evaluate.compile()
  console.say(f"compiled in {time.perf_counter() - started:.0f} s")
  return compiled


def batch_shapes(experiment: Experiment, batch_size: int) -> dict[str, Any]:
  """A global batch as the input pipeline makes it, as shapes."""
  size = experiment.config.data.image_size
  channels = experiment.config.data.channels
  rows = sharding.batch_sharding(experiment.mesh)
  shapes = {
    "image": ((batch_size, size, size, channels), "uint8"),
    "label": ((batch_size,), "int32"),
    "mask": ((batch_size,), "float32"),
    "damaged": ((batch_size,), "bool"),
  }
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
    for name, (shape, dtype) in shapes.items()
  }
