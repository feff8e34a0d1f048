"""Where a model's weights come from, for `train.py` and `eval.py`."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

import tasks
from experiment import saved
from experiment.build import Evaluation, Experiment
from models import pretrained
from training import checkpoints, console, paths, records, train_state


def initial_state(experiment: Experiment) -> train_state.TrainState:
  """The state of step 0, with the weights that `config.init` names.

  Raises:
    ValueError: if they are not there or do not fit the model.
    CheckpointError: if a checkpoint cannot be read.
  """
  init = experiment.config.init
  state = experiment.init()
  if not init.weights:
    return state
  variables = load_weights(
    experiment,
    init.weights,
    step=init.step,
    use_ema=init.ema,
    replace_head=init.replace_head,
    resize_tables=init.resize_tables,
    part=init.part,
  )
  # Copies, since a donated buffer must not be shared between two leaves.
  ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, variables)
  collections = dict(variables)
  params = collections.pop("params")
  return state.replace(params=params, collections=collections, ema=ema)


def load_weights(
  experiment: Evaluation,
  source: str,
  *,
  step: str = "last",
  use_ema: bool = True,
  replace_head: bool = False,
  resize_tables: bool = False,
  part: str = "",
) -> dict[str, Any]:
  """Reads weights onto the experiment's mesh.

  What the task adds to a model (`Task.added`), and what is inserted into it
  (`models.insertion`), begins anew where the source lacks it.

  Args:
    experiment: with the model that they are for.
    source: a workdir, `<path>.safetensors`, `timm:<name>` or `random`.
    step: of a workdir, the checkpoint: "last", "best" or a number.
    use_ema: of a workdir, the moving average if the run kept one.
    replace_head: whether the logits are initialised anew.
    resize_tables: whether tables of relative biases are interpolated.
    part: name of the submodule that they are for; all of the model if empty.

  Returns:
    "params" and the other collections of the model.

  Raises:
    ValueError: if they are not there or do not fit the model.
    CheckpointError: if a checkpoint cannot be read.
  """
  if source == "random":
    return experiment.init_variables()
  options = {
    "resize_tables": resize_tables,
    "replace_head": replace_head,
    "part": part,
    "init": experiment.task.init,
    "seed": experiment.config.seed,
  }
  model, added = experiment.task.model, experiment.task.added
  if not _is_run(source):
    variables = pretrained.load(source, model, **options)
  else:
    records.check_files(source, experiment.task.files(), "weights")
    variables = pretrained.adapt(
      experiment.task.received(_restore(experiment, source, step, use_ema)),
      model,
      optional=lambda path: paths.first_match(added, path) is not None,
      **options,
    )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, experiment.variables)
  return jax.device_put(variables, shardings)


def is_averaged(source: str, use_ema: bool) -> bool | None:
  """Whether `load_weights` takes a moving average; None if nobody knows.

  Args:
    source: as for `load_weights`.
    use_ema: likewise.
  """
  if not _is_run(source):
    return None
  return use_ema and saved.load_config(source).ema.decay > 0


def _is_run(source: str) -> bool:
  return not (
    source == "random"
    or source.startswith("timm:")
    or source.endswith(".safetensors")
  )


def _restore(
  experiment: Evaluation,
  workdir: str,
  step: str,
  use_ema: bool,
) -> dict[str, Any]:
  """Reads the variables of any run, by default of its last checkpoint."""
  config = saved.load_config(workdir)  # A clear error if this is no run.
  store = checkpoints.Checkpoints(
    workdir,
    config.checkpoint,
    tasks.find(config.task).directions,
    read_only=True,
  )
  number = {"last": max(store.steps(), default=None), "best": store.best_step()}
  chosen = number[step] if step in number else _step_number(step)
  if chosen is None or chosen not in store.steps():
    raise ValueError(
      f"step={step!r}: {store.directory} has the steps {store.steps()}."
    )
  everywhere = NamedSharding(experiment.mesh, PartitionSpec())
  variables = store.restore_variables(chosen, everywhere, averaged=use_ema)
  console.say(f"checkpoint of step {chosen} in {store.directory}")
  return variables


def _step_number(step: str) -> int:
  if not step.isdecimal():
    raise ValueError(f"step={step!r} is none of last, best or a number.")
  return int(step)
