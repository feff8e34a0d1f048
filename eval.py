r"""Evaluates a trained or published model on the evaluation split.

  python eval.py --weights=runs/digits
  python eval.py --config=configs/maxvit.py:tiny_224 \
    --weights=timm:maxvit_tiny_tf_224.in1k

`--weights` is the workdir of a run (whose own config is used unless --config is
given), a `.safetensors` file, `timm:<name>`, or `random`. The last line of the
output is one JSON object with model, examples, top1 and top5. `--per_class`
names a file for the accuracy of each class; `--among_present` lets the model
choose only among the classes that the split has. Any field of the config can be
set for the test: `--config.data.image_size=256 --config.dtype=bfloat16`.

  python eval.py --table=maxvit --weights=timm
  python eval.py --table=maxvit --weights=runs

evaluates every published model of a family that has weights, timm's or those in
a folder (`<folder>/<variant>` is a run, `<folder>/<variant>.safetensors` a
file), notes the results and writes `docs/results/<family>.md`. Without
`--weights` it writes the table from what was noted before. ImageNet is looked
for in $TFDS_DATA_DIR.
"""

import csv
import functools
import importlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm
from absl import flags

import experiment
import input_pipeline
import storage
from experiment.batches import create_eval_batches
from experiment.weights import load_weights
from tools import published, results_table
from training import checkpoints, cli, console, evaluation, summary


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
  among = input_pipeline.present_classes(config.data) if among_present else None
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
    _write_classes(setup.info.class_names, *counts, per_class)
  return result


def _with_progress(batches: Iterable[Any], total: int) -> Iterable[Any]:
  # None: no bar where nobody watches a terminal.
  disable = None if jax.process_index() == 0 else True
  return tqdm.tqdm(batches, "evaluating", total, unit="batch", disable=disable)


def _write_classes(
  names: Sequence[str], examples: np.ndarray, correct: np.ndarray, path: str
) -> None:
  with storage.path(path).open("w") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["label", "name", "examples", "correct", "accuracy"])
    for label, name in enumerate(names):
      total, right = int(examples[label]), int(correct[label])
      accuracy = f"{right / total:.4f}" if total else ""
      writer.writerow([label, name, total, right, accuracy])


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


def evaluate_family(family: str, source: str) -> None:
  """Evaluates each published model of a family that `source` has weights of.

  Args:
    family: a table of `tools.published`, and a file of `configs`.
    source: "timm", or a folder.

  Raises:
    ValueError: if there are no weights at all.
  """
  found = [
    (row, weights)
    for row in published.rows(family)
    if row.config and (weights := _find_weights(row, source))
  ]
  if not found:
    raise ValueError(
      f"weights={source!r} has weights for no row of {family}; it must be "
      "'timm', if timm has published any, or a folder with "
      "<variant> (the workdir of a run) or <variant>.safetensors."
    )
  configs = importlib.import_module(f"configs.{family}")
  for row, weights in found:
    config = configs.get_config(row.config)
    config.data.image_size = row.resolution
    result = summarize(config, evaluate(config, weights))
    console.say(f"{row.published_name} at {row.resolution}: {result}")
    results_table.record(row, {"weights": weights, **result})


def _find_weights(row: published.Row, source: str) -> str:
  if source == "timm":
    return row.weights
  folder = storage.path(source) / row.config
  if folder.is_dir():
    return str(folder)
  file = folder.with_name(f"{row.config}.safetensors")
  return str(file) if file.exists() else ""


def main(argv: Sequence[str]) -> None:
  """Reads the flags, evaluates and prints."""
  del argv
  args = flags.FLAGS
  if args.table:
    if args.weights:
      evaluate_family(args.table, args.weights)
    console.say(f"wrote {results_table.write(args.table)}")
    return
  if not args.weights:
    raise ValueError("Give --weights, what to evaluate, or --table.")
  config = args.config
  if config is None:
    if not storage.path(args.weights).is_dir():
      raise ValueError(
        f"weights={args.weights!r} is not the workdir of a run: give --config."
      )
    config = experiment.load_config(args.weights)
  result = evaluate(
    config,
    args.weights,
    step=args.step,
    use_ema=args.ema,
    per_class=args.per_class,
    among_present=args.among_present,
  )
  print(summary.describe_evaluation(result))
  print(json.dumps(summarize(config, result)))


if __name__ == "__main__":
  cli.define_config_flag()
  flags.DEFINE_string("weights", None, "What to evaluate; see above.")
  flags.DEFINE_string("step", "last", "Of a run: last, best or a number.")
  flags.DEFINE_bool("ema", True, "Use the moving average if there is one.")
  flags.DEFINE_string("per_class", None, "A CSV file to write, of the classes.")
  flags.DEFINE_bool(
    "among_present",
    False,
    "Choose among the classes that occur, as for ImageNet-A and R.",
  )
  flags.DEFINE_string("table", None, "A family whose table is written.")
  cli.run(main, (*cli.USER_ERRORS, checkpoints.CheckpointError))
