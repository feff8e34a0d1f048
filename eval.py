"""Evaluates a trained or published model on the evaluation split.

  python eval.py --weights=runs/digits
  python eval.py --config=configs/digits.py --weights=random

`--weights` is the workdir of a run (whose own config is used unless --config is
given), a `.safetensors` file, `timm:<name>`, or `random`. The last line of the
output is one JSON object with model, examples, top1 and top5.
"""

import json
from collections.abc import Sequence

import jax
import ml_collections
from absl import flags
from etils import epath

import experiment as experiment_lib
import weights as weights_lib
from train import create_eval_batches
from training import checkpoints, cli, evaluation, records, summary


def evaluate(
  config: ml_collections.ConfigDict,
  weights: str,
  *,
  step: str = "last",
  use_ema: bool = True,
) -> dict[str, float]:
  """Runs one exact evaluation.

  Args:
    config: as for training.
    weights: a workdir, `<path>.safetensors`, `timm:<name>` or `random`.
    step: of a workdir, the checkpoint: "last", "best" or a number.
    use_ema: evaluate the moving average if the run kept one.

  Returns:
    Means over the examples, and `examples`.

  Raises:
    ValueError: if the weights are not there or do not fit the model.
    CheckpointError: if the checkpoint cannot be read.
  """
  experiment = experiment_lib.create(config)
  with jax.set_mesh(experiment.mesh):
    variables = weights_lib.load(
      experiment, weights, step=step, use_ema=use_ema
    )
    return evaluation.evaluate(
      jax.jit(experiment.task.evaluate),
      variables,
      create_eval_batches(config),
      experiment.mesh,
    )


def main(argv: Sequence[str]) -> None:
  """Reads the flags, evaluates and prints."""
  del argv
  args = flags.FLAGS
  config = args.config
  if config is None:
    if not epath.Path(args.weights).is_dir():
      raise ValueError(
        f"weights={args.weights!r} is not the workdir of a run: give --config."
      )
    config = records.load_config(args.weights)
  result = evaluate(config, args.weights, step=args.step, use_ema=args.ema)
  print(summary.describe_evaluation(result))
  print(
    json.dumps(
      {
        "model": config.model.name,
        "examples": result["examples"],
        "top1": result["accuracy"],
        "top5": result.get("accuracy_top5"),
      }
    )
  )


if __name__ == "__main__":
  cli.define_config_flag()
  flags.DEFINE_string("weights", None, "What to evaluate; see above.")
  flags.DEFINE_string("step", "last", "Of a run: last, best or a number.")
  flags.DEFINE_bool("ema", True, "Use the moving average if there is one.")
  flags.mark_flags_as_required(["weights"])
  cli.run(main, (*cli.USER_ERRORS, checkpoints.CheckpointError))
