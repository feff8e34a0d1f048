"""The fields that every config has.

A config file starts from `get_config()` and assigns what differs. All fields
exist here, or in the task's own, so a misspelt override is an error and not a
new field.
"""

from collections.abc import Collection

import ml_collections

import tasks
from training import optimizers


def check_variant(family: str, variant: str, variants: Collection[str]) -> None:
  """Raises ValueError unless `configs/<family>.py` has the variant."""
  if variant not in variants:
    raise ValueError(
      f"configs/{family}.py has no variant {variant!r}; it has "
      f"{', '.join(variants)}."
    )


def get_config(task: str = "classification") -> ml_collections.ConfigDict:
  """The fields of the loop and of a task, with neutral values.

  Raises:
    ValueError: if there is no such task.
  """
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = task

  # Everything but the name goes to `models.create` as an override.
  config.model = ml_collections.ConfigDict()
  # What the layers compute in; parameters, losses and statistics are float32.
  config.dtype = "float32"

  # Where a new run starts; without weights, from the model's own initialiser.
  config.init = ml_collections.ConfigDict(
    dict(
      # A workdir, <path>.safetensors or timm:<name>.
      weights="",
      step="last",  # Of a workdir: last, best or a number.
      ema=True,  # Of a workdir: the moving average if there is one.
      # Whether logits for other classes are initialised anew, and tables of
      # relative biases of another size interpolated.
      replace_head=False,
      resize_tables=False,
      # The submodule that the weights are for, as "trunk"; all if empty.
      part="",
    )
  )
  config.batch_size = 128  # Over all processes and devices.
  config.eval_batch_size = 128
  config.accumulation_steps = 1
  config.train_for = "1 epochs"
  config.evaluate_every = "1 epochs"

  # Which parameters learn, by path as `training.paths` says, all if empty; and
  # which of these do not.
  config.trainable = ()
  config.frozen = ()
  config.optimizer = optimizers.default_config()
  config.ema = ml_collections.ConfigDict(
    dict(
      decay=0.0,  # What a move of the average keeps; 0 has no average.
      warmup=True,  # Keeps less at first; see `train_state.update_ema`.
      every=1,  # Updates from one move to the next.
    )
  )

  # One size may be -1 and takes the devices that are left.
  config.mesh = ml_collections.ConfigDict(
    dict(slice=1, data=-1, fsdp=1, sequence=1, model=1)
  )
  # Pairs (pattern of a parameter's path, mesh axis for each array axis).
  config.sharding_rules = ()

  config.checkpoint = ml_collections.ConfigDict(
    dict(every="1 epochs", keep_last=2)
  )
  config.update(tasks.find(task).default_config())
  return config


def schedule(
  config: ml_collections.ConfigDict,
  *,
  steps: int,
  every: int,
  save_every: int | None = None,
  rates: tuple[float, float] | None = None,
  warmup: str = "5 percent",
) -> None:
  """How long a config trains, when it is looked at, and its learning rates.

  Args:
    config: from `get_config`, changed in place.
    steps: updates.
    every: steps from one evaluation to the next.
    save_every: steps from one checkpoint to the next; `every` if None.
    rates: the highest and the last learning rate; None leaves all rates be.
    warmup: until the highest.
  """
  config.train_for = f"{steps} steps"
  config.evaluate_every = f"{every} steps"
  config.checkpoint.every = (
    f"{every if save_every is None else save_every} steps"
  )
  if rates is not None:
    config.optimizer.learning_rate, config.optimizer.final_learning_rate = rates
    config.optimizer.warmup = warmup
