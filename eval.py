r"""Evaluates a trained or published model on the evaluation split.

  python eval.py --weights=runs/digits
  python eval.py --config=configs/maxvit.py:tiny_224 \
    --weights=timm:maxvit_tiny_tf_224.in1k

`--weights` is the workdir of a run (whose own config is used unless --config is
given), a `.safetensors` file, `timm:<name>`, or `random`. The last line of the
output is one JSON object: model, examples, top1 and top5 of a classifier;
model, loss, bits_per_byte and tokens of a language model; model, loss,
class_accuracy and frechet_distance of a generator of images; model, psnr_y,
ssim_y and images of a network that restores images. Of a run, `averaged` says
whether these are weights that were averaged. Any field of the config can be set
for the test: `--config.data.image_size=256 --config.dtype=bfloat16`. What only
training uses of the config is not looked at. A task has options of its own,
which `--help` lists.
"""

import json
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections
import tqdm

import experiment
import tasks
from experiment import program
from experiment.weights import is_averaged, load_weights
from training.console import say


def evaluate(
  config: ml_collections.ConfigDict,
  weights: str,
  *,
  step: str = "last",
  use_ema: bool = True,
  **options: Any,
) -> dict[str, float]:
  """Runs one exact evaluation.

  Args:
    config: as for training.
    weights: a workdir, `<path>.safetensors`, `timm:<name>` or `random`.
    step: of a workdir, the checkpoint: "last", "best" or a number.
    use_ema: evaluate the moving average if the run kept one.
    **options: of the task, its `evaluate_options`.

  Returns:
    What was measured.

  Raises:
    ValueError: if the weights are not there or do not fit the model.
    CheckpointError: if the checkpoint cannot be read.
  """
  setup = experiment.create_evaluation(config)
  with jax.set_mesh(setup.mesh):
    variables = load_weights(setup, weights, step=step, use_ema=use_ema)
    return setup.task.evaluate(variables, setup.mesh, _with_progress, **options)


def _with_progress(batches: Iterable[Any], total: int) -> Iterable[Any]:
  # None: no bar where nobody watches a terminal.
  disable = None if jax.process_index() == 0 else True
  return tqdm.tqdm(batches, "evaluating", total, unit="batch", disable=disable)


def summarize(
  config: ml_collections.ConfigDict, result: dict[str, float]
) -> dict[str, Any]:
  """The line of JSON that others read."""
  report = tasks.find(config.task).report(result)
  return {"model": config.model.name, **report}


def main(
  config: ml_collections.ConfigDict,
  weights: str,
  *,
  use_ema: bool = True,
  **options: Any,
) -> None:
  """Evaluates and prints."""
  result = evaluate(config, weights, use_ema=use_ema, **options)
  say(tasks.find(config.task).describe(result))
  line = summarize(config, result)
  averaged = is_averaged(weights, use_ema)
  if averaged is not None:
    line["averaged"] = averaged
  say(json.dumps(line))


if __name__ == "__main__":
  program.run(main, "evaluate_options")
