r"""Evaluates a trained or published model on the evaluation split.

  python eval.py --weights=runs/digits
  python eval.py --config=configs/maxvit.py:tiny_224 \
    --weights=timm:maxvit_tiny_tf_224.in1k

`--weights` is the workdir of a run (whose own config is used unless --config is
given), a `.safetensors` file, `timm:<name>`, or `random`. The last line of the
output is one JSON object with model, examples, top1 and top5. `--per_class`
names a file for the accuracy of each class; `--among_present` lets the model
choose only among the classes that the split has. Any field of the config can be
set for the test: `--config.data.image_size=256 --config.dtype=bfloat16`. What
only training uses of the config is not looked at.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import ml_collections
import tqdm
from absl import flags

import experiment
from experiment.batches import create_eval_batches
from experiment.weights import load_weights
from input_pipeline import images
from training import checkpoints, class_table, cli, evaluation, summary


def evaluate(
  config: ml_collections.ConfigDict,
  weights: str,
  *,
  step: str = "last",
  use_ema: bool = True,
  per_class: str | None = None,
  among_present: bool = False,
) -> dict[str, float]:
  """Runs one exact evaluation.

  Args:
    config: as for training.
    weights: a workdir, `<path>.safetensors`, `timm:<name>` or `random`.
    step: of a workdir, the checkpoint: "last", "best" or a number.
    use_ema: evaluate the moving average if the run kept one.
    per_class: a CSV file to write: examples and accuracy of each class.
    among_present: choose among the classes that the split has examples of.

  Returns:
    Means over the examples, and `examples`.

  Raises:
    ValueError: if the weights are not there or do not fit the model.
    CheckpointError: if the checkpoint cannot be read.
  """
  setup = experiment.create_evaluation(config)
  among = images.present_classes(config.data) if among_present else None
  num_batches = -(-setup.info.num_eval_examples // config.eval_batch_size)
  with jax.set_mesh(setup.mesh):
    variables = load_weights(setup, weights, step=step, use_ema=use_ema)
    result = evaluation.evaluate(
      jax.jit(functools.partial(setup.task.evaluate_classes, among=among)),
      variables,
      _with_progress(create_eval_batches(config, setup.mesh), num_batches),
      setup.mesh,
    )
  counts = [result.pop(f"class_{name}") for name in ("examples", "correct")]
  if per_class and jax.process_index() == 0:
    class_table.write(per_class, setup.info.class_names, *counts)
  return result


def _with_progress(batches: Iterable[Any], total: int) -> Iterable[Any]:
  # None: no bar where nobody watches a terminal.
  disable = None if jax.process_index() == 0 else True
  return tqdm.tqdm(batches, "evaluating", total, unit="batch", disable=disable)


def summarize(
  config: ml_collections.ConfigDict, result: dict[str, float]
) -> dict[str, Any]:
  """The line of JSON that others read."""
  return {
    "model": config.model.name,
    "examples": result["examples"],
    "top1": result["accuracy"],
    "top5": result.get("accuracy_top5"),
  }


def main(argv: Sequence[str]) -> None:
  """Reads the flags, evaluates and prints."""
  del argv
  args = flags.FLAGS
  if not args.weights:
    raise ValueError("Give --weights: what to evaluate.")
  if args.config is None:
    raise ValueError(
      f"weights={args.weights!r} is not the workdir of a run: give --config."
    )
  result = evaluate(
    args.config,
    args.weights,
    step=args.step,
    use_ema=args.ema,
    per_class=args.per_class,
    among_present=args.among_present,
  )
  print(summary.describe_evaluation(result))
  print(json.dumps(summarize(args.config, result)))


if __name__ == "__main__":
  cli.define_config_flag(
    experiment.optional_fields,
    load_run=experiment.load_config,
    default="weights",
  )
  flags.DEFINE_string("weights", None, "What to evaluate; see above.")
  flags.DEFINE_string("step", "last", "Of a run: last, best or a number.")
  flags.DEFINE_bool("ema", True, "Use the moving average if there is one.")
  flags.DEFINE_string("per_class", None, "A CSV file to write, of the classes.")
  flags.DEFINE_bool(
    "among_present",
    False,
    "Choose among the classes that occur, as for ImageNet-A and R.",
  )
  cli.run(main, (*cli.USER_ERRORS, checkpoints.CheckpointError))
