"""A config made into objects: the one place where all packages meet.

`train.py`, `eval.py` and `sample.py` are stories about the same experiment.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import ml_collections

import models
import tasks
from experiment import layer_rates, ranges
from models import insertion
from training import (
  durations,
  evaluation,
  metrics,
  optimizers,
  paths,
  placement,
  schedules,
  sharding,
  train_state,
  train_step,
  trained,
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What evaluation needs of a config, known before any array exists."""

  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  task: tasks.Task
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
  # What rules by parameter name take, a line for each kind that there is, and
  # what the mesh splits.
  rules: list[str]
  # The train state as `jax.ShapeDtypeStruct`s with their shardings.
  state: train_state.TrainState

  # Asked for in every step.
  @functools.cached_property
  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a global training batch."""
    spec = self.task.batch_spec(self.config.batch_size, train=True)
    return evaluation.placed(spec, self.mesh)


def create_evaluation(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
  info: Any = None,
) -> Evaluation:
  """Checks what evaluation uses of a config: mesh, data set, task and model.

  Args:
    config: of a run.
    devices: of the mesh; those at hand if None.
    info: what `dataset_info` of the task's room would return; if None it does,
      and opens the evaluation split.

  Raises:
    ValueError: for a field of these that does not fit, before any work is done.
  """
  ranges.check(config)
  mesh = sharding.create_mesh(config.mesh, devices)
  sharding.check_batch_size(config.eval_batch_size, mesh, "eval_batch_size")
  if info is None:
    info = tasks.find(config.task).room.dataset_info(config.data)
  task = tasks.create(config, info)

  def init_variables() -> dict[str, Any]:
    init_key, _ = _keys(config)
    return task.init(init_key)

  shapes = jax.eval_shape(init_variables)
  _group_inserts(task, paths.flatten_with_names(shapes["params"]))
  init, variables = _place(init_variables, shapes, mesh, config)
  return Evaluation(config, mesh, task, init, variables)


def create(
  config: ml_collections.ConfigDict,
  devices: Sequence[jax.Device] | None = None,
  info: Any = None,
) -> Experiment:
  """Checks a config and builds mesh, data set, model, task and optimizer.

  Args:
    config: of a run.
    devices: of the mesh; those at hand if None. They may be of a topology that
      is not here, to compile for it.
    info: what is known of the data, as for `create_evaluation`. With its
      `num_train_examples` no data is opened at all.

  Raises:
    ValueError: for any field that does not fit, before any work is done.
  """
  evaluation = create_evaluation(config, devices, info)
  mesh, task = evaluation.mesh, evaluation.task
  sharding.check_batch_size(config.batch_size, mesh, "batch_size")
  train_step.check_accumulation(
    config.batch_size, config.accumulation_steps, mesh
  )
  clock = _create_clock(config, task)
  optimizers.check_unused(config.optimizer)
  schedule = schedules.create_schedule(config.optimizer, clock)
  names = paths.flatten_with_names(evaluation.variables["params"])
  config = layer_rates.with_layer_rules(config, names)
  tx = optimizers.create_optimizer(config.optimizer, schedule)
  metrics.check_best_metric(config.checkpoint.best_metric, task.metric_names())
  trainable = trained.choose(
    names,
    trainable=config.trainable,
    frozen=config.frozen,
    also=task.trainable(),
  )

  def state_of(variables: dict[str, Any]) -> train_state.TrainState:
    _, step_key = _keys(config)
    return train_state.create_state(
      variables,
      tx,
      step_key,
      use_ema=config.ema.decay > 0,
      trainable=trainable,
    )

  def init_state() -> train_state.TrainState:
    init_key, _ = _keys(config)
    return state_of(task.init(init_key))

  # Of the shapes that are known, since tracing the model takes a second or so.
  shapes = jax.eval_shape(state_of, evaluation.variables)
  init, state = _place(init_state, shapes, mesh, config)
  rules = _describe_rules(config, task, trainable, state.params)
  rules += _describe_placement(config, mesh, state)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

  def jit_step(accumulation_steps: int) -> Any:
    step = train_step.make_train_step(
      task,
      tx,
      schedule,
      config,
      accumulation_steps=accumulation_steps,
      trainable=trainable,
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
  init: Callable[[], Any],
  shapes: Any,
  mesh: jax.sharding.Mesh,
  config: ml_collections.ConfigDict,
) -> tuple[Callable[[], Any], Any]:
  """Returns `init` with its results on the mesh, and their shapes there."""
  shardings = placement.state_shardings(shapes, mesh, *_sharding_rules(config))
  placed = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )
  # Each array is made where it will live: no device ever holds them all.
  return jax.jit(init, out_shardings=shardings), placed


def _sharding_rules(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
  """The user's rules, and those of the model's family."""
  return config.sharding_rules, models.sharding_rules(config.model.name)


def _describe_placement(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  state: train_state.TrainState,
) -> list[str]:
  """Says what is split how, if anything could be."""
  if mesh.size == mesh.shape["slice"] * mesh.shape["data"]:
    return []
  variables = state.variables(averaged=False)
  places = placement.placements(variables, mesh, *_sharding_rules(config))
  return [
    *placement.describe({"params": state.params}, mesh, places),
    f"train state: {placement.bytes_per_device(state) / 1e6:,.1f} MB a device",
  ]


def _describe_rules(
  config: ml_collections.ConfigDict,
  task: tasks.Task,
  trainable: Callable[[str], bool] | None,
  params: Any,
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
  # What these rules do not fit is an error of `placement.placements`.
  groups["sharding_rules"] = paths.group_by_rule(
    "sharding_rules",
    patterns := paths.check_pairs("sharding_rules", config.sharding_rules),
    sizes,
    optional=patterns,
  )
  groups["model.inserts"] = _group_inserts(task, sizes)
  if trainable is not None:
    groups["frozen"] = trained.group(trainable, sizes)
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


def _group_inserts(
  task: tasks.Task, names: Collection[str]
) -> dict[str, list[str]]:
  """Which parameters each insert of the model has.

  Raises:
    ValueError: for one that is put at nothing.
  """
  patterns = insertion.patterns(task.model)
  return paths.group_by_rule("model.inserts", patterns, names)


def _create_clock(
  config: ml_collections.ConfigDict, task: tasks.Task
) -> durations.Clock:
  num_examples = task.info.num_train_examples
  if num_examples is None:
    num_examples = task.room.num_train_examples(config.data)
  clock = durations.Clock(num_examples, config.batch_size)
  total_steps = clock.steps(config.train_for, "train_for")
  return durations.Clock(num_examples, config.batch_size, total_steps)
