"""What programs that use a trained model have in common: their command line."""

from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

import experiment
import tasks
from training import checkpoints, cli

# Flags are those of the program, which its --help shall list.
flags.disclaim_key_flags()


def run(use: Callable[..., Any], options: str) -> None:
  """Runs a program of which --weights and --config say with what model.

  Args:
    use: called with config, weights, step, use_ema, and those options of the
      task that the command line gives.
    options: the attribute of a task that has its options for this program, as
      "sample_options".
  """
  by_task = {name: getattr(tasks.find(name), options) for name in tasks.TASKS}

  def main(argv: Sequence[str]) -> None:
    del argv
    args = flags.FLAGS
    cli.check_weights(args.config, args.weights)
    task = args.config.task
    # Refuses a task that does not exist.
    found = getattr(tasks.find(task), options)
    with cli.joined():
      use(
        args.config,
        args.weights,
        step=args.step,
        use_ema=args.ema,
        **cli.task_options(task, found),
      )

  cli.define_config_flag(
    experiment.optional_fields,
    load_run=experiment.load_trained,
    default="weights",
  )
  cli.define_weights_flags()
  cli.define_hosts_flags()
  cli.define_task_flags(by_task)
  cli.run(main, (*cli.USER_ERRORS, checkpoints.CheckpointError))
