"""A config made into objects: the one place where all packages meet.

`train.py` and `eval.py` are two stories about the same experiment.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

import models
from experiment import layer_rates
from experiment.ranges import RANGES
from input_pipeline import images
from training import (
  classification,
  console,
  durations,
  metrics,
  optimizers,
  paths,
  ranges,
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
  info: images.DatasetInfo
  task: Any
  init_variables: Callable[[], dict[str, Any]]
  # The variables as `jax.ShapeDtypeStruct`s with their shardings.
  variables: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment(Evaluation):
  """Everything that is known of a run before any array exists."""

  clock: durations.Clock
  train_step: Callable[[Any, Any], Any]
  # The same without accumulation, to count work by: XLA counts what a scan
  # does once, not once for each micro-batch.
  whole_step: Callable[[Any, Any], Any]
  init: Callable[[], train_state.TrainState]
  # What rules by parameter name take, a line for each kind that there is.
  rules: list[str]
  # The train state as `jax.ShapeDtypeStruct`s with their shardings.
  state: train_state.TrainState


def create_evaluation(config: ml_collections.ConfigDict) -> Evaluation:
  """Checks what evaluation uses of a config: mesh, data set, task and model.

  Raises:
    ValueError: for a field of these that does not fit, before any work is done.
  """
  ranges.check(config, RANGES)
  mesh = sharding.create_mesh(config.mesh)
  sharding.check_batch_size(config.eval_batch_size, mesh, "eval_batch_size")
  info = images.dataset_info(config.data)
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
  clock = _create_clock(config, images.num_train_examples(config.data))
  optimizers.check_unused(config.optimizer)
  schedule = schedules.create_schedule(config.optimizer, clock)
  names = paths.flatten_with_names(evaluation.variables["params"])
  config = layer_rates.with_layer_rules(config, names)
  tx = optimizers.create_optimizer(config.optimizer, schedule)
  metrics.check_best_metric(config.checkpoint.best_metric, task.metric_names())
  if config.frozen_trunk:
    tx = optimizers.freeze(tx, task.trainable())

  def init_state() -> train_state.TrainState:
    init_key, step_key = _keys(config)
    return train_state.create_state(
      task.init(init_key), tx, step_key, use_ema=config.ema.decay > 0
    )

  init, state = _place(init_state, mesh, config.sharding_rules)
  rules = _describe_rules(config, task, state.params)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

  def jit_step(accumulation_steps: int) -> Any:
    step = train_step.make_train_step(
      task, tx, schedule, config, accumulation_steps=accumulation_steps
    )
    return jax.jit(
      step,
      in_shardings=(shardings, sharding.batch_sharding(mesh)),
      out_shardings=(shardings, None),
      donate_argnums=0,
    )

  return Experiment(
    **vars(evaluation),
    clock=clock,
    train_step=jit_step(config.accumulation_steps),
    whole_step=jit_step(1),
    init=init,
    rules=rules,
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


def _describe_rules(
  config: ml_collections.ConfigDict, task: Any, params: Any
) -> list[str]:
  """Says how many parameters each rule takes.

  Raises:
    ValueError: for a rule that takes nothing.
  """
  sizes = {n: leaf.size for n, leaf in paths.flatten_with_names(params).items()}
  groups = {
    f"optimizer.{field}": found
    for field, found in optimizers.group_by_rules(
      config.optimizer, sizes
    ).items()
  }
  if not config.optimizer.weight_decay:
    del groups["optimizer.decay_exclude"]
  # What these rules do not fit is an error of `sharding.state_shardings`.
  groups["sharding_rules"] = paths.group_by_rule(
    "sharding_rules",
    patterns := paths.check_pairs("sharding_rules", config.sharding_rules),
    sizes,
    optional=patterns,
  )
  if config.frozen_trunk:
    groups["frozen_trunk"] = optimizers.group_frozen(task.trainable(), sizes)
  return [
    f"{field}: "
    + ", ".join(
      f"{rule or 'no rule'} takes {sum(sizes[n] for n in names):,} parameters "
      f"({len(names)} arrays)"
      for rule, names in found.items()
      if names
    )
    for field, found in groups.items()
    if len(found) > 1
  ]


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
  step = count_step_flops(experiment, train)
  console.say(
    f"{config.model.name}: {parameters:,} parameters, "
    f"{forward / 1e9:.3g} GFLOP forward per image, "
    f"{step / 1e9:.3g} GFLOP per training step"
  )
  for line in experiment.rules:
    console.say(line)
  mesh = " x ".join(f"{n} {axis}" for axis, n in experiment.mesh.shape.items())
  console.say(
    f"{jax.device_count()} device(s) {jax.devices()[0].device_kind}: {mesh}"
  )
  started = time.perf_counter()
  compiled = train.compile(), evaluate.compile()
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
  config = experiment.config
  if config.accumulation_steps > 1:
    lowered = experiment.whole_step.lower(
      experiment.state, batch_shapes(experiment, config.batch_size)
    )
  return lowered.cost_analysis()["flops"]


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
