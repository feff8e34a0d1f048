r"""Shows what a trained model makes: text, images, restored photographs.

  python sample.py --weights=runs/language --prompt="def " --max_tokens=200
  python sample.py --weights=runs/lina --classes=3,5 --seed=0 --out=grid.png \
    --guidance=2.4 --animation=order.gif
  python sample.py --weights=runs/moving --classes=0+1,3+3 --steps=25 \
    --out=frames.png --animation=moving.gif
  python sample.py --weights=runs/span --input=photographs --out=restored

A language model goes on from a prompt. A generator of images writes a picture
with a row for each class, `--classes=0..9`, and if asked an animation of the
order in which it made their parts; of videos a row of frames for each, and the
video as animation. The same seed makes the same. A network that restores images
takes a file or a folder of them, and writes each as PNG.

`--weights` is the workdir of a run, whose own config is used unless --config is
given. What else there is to say depends on the task; `--help` lists it. No text
is opened, and of images only what says which classes there are.
"""

import contextlib
import sys
from typing import Any

import jax
import ml_collections

import experiment
import tasks
from experiment import program
from experiment.weights import load_weights


def sample(
  config: ml_collections.ConfigDict,
  weights: str,
  *,
  step: str = "last",
  use_ema: bool = True,
  **options: Any,
) -> None:
  """Shows samples: text on standard output, or files.

  Args:
    config: as for training.
    weights: a workdir, `<path>.safetensors` or `random`.
    step: of a workdir, the checkpoint: "last", "best" or a number.
    use_ema: take the moving average if the run kept one.
    **options: of the task, its `sample_options`.

  Raises:
    ValueError: if the weights are not there or do not fit the model, if the
      task has no samples, or for options that do not fit.
    CheckpointError: if the checkpoint cannot be read.
  """
  task = tasks.find(config.task)
  if not task.sample_options:
    raise ValueError(
      f"task={config.task!r} has no samples: its models make nothing up."
    )
  if jax.process_count() > 1:
    raise ValueError(
      f"Samples are made by one process, and there are {jax.process_count()}: "
      "start it on one host with --nodistributed, and --weights that it sees."
    )
  info = task.sampling_info(config)
  # Standard output is for the samples.
  with contextlib.redirect_stdout(sys.stderr):
    setup = experiment.create_evaluation(config, info=info)
    with jax.set_mesh(setup.mesh):
      variables = load_weights(setup, weights, step=step, use_ema=use_ema)
  with jax.set_mesh(setup.mesh):
    setup.task.sample(variables, **options)


if __name__ == "__main__":
  program.run(sample, "sample_options")
