"""Which values the numbers of a config may have.

Those of `config.optimizer` stand in `training/optimizers.py`, those of a task's
own fields in the task, and those of `config.data` in `input_pipeline`, which is
used without the rest too. What
depends on more than one field is checked where it is used.
"""

import ml_collections

import tasks
from training import ranges, sharding
from training.ranges import Number, OneOf

RANGES = {
  # JAX makes a key of 32 bits, and would take other seeds for one of these.
  "seed": Number(0, 2**32 - 1, whole=True),
  "dtype": OneOf(("float32", "bfloat16", "float16")),
  "batch_size": Number(1, whole=True),
  "eval_batch_size": Number(1, whole=True),
  "accumulation_steps": Number(1, whole=True),
  "ema.decay": Number(0, 1, below=True),
  "ema.every": Number(1, whole=True),
  **{f"mesh.{axis}": Number(-1, whole=True) for axis in sharding.AXES},
  "checkpoint.keep_last": Number(1, whole=True),
}


def of_task(task: str) -> dict[str, Number | OneOf]:
  """Those of the loop's fields and of a task's.

  Raises:
    ValueError: if there is no such task.
  """
  return {**RANGES, **tasks.find(task).ranges}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for the first number that is out of its range."""
  ranges.check(config, of_task(config.task))
