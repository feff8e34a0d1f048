"""What a person sees at the end of a run."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from training import checkpoints, metrics, plots

_SHOWN_PREDICTIONS = 24


def describe_evaluation(result: dict[str, float]) -> str:
  """ "accuracy 98.06 %, loss 0.0812 on 360 examples"."""
  damaged, unlabelled = (result.get(k, 0) for k in ("damaged", "unlabelled"))
  return (
    f"accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f} "
    f"on {result['examples']} examples"
    + (f", {damaged} damaged ones left out" if damaged else "")
    + (f", {unlabelled} without a class left out" if unlabelled else "")
  )


def write_curves(workdir: str) -> None:
  """Draws metrics.jsonl into curves.png."""
  with (epath.Path(workdir) / "curves.png").open("wb") as file:
    plots.plot_curves(metrics.read_metrics(workdir), file)


def write_predictions(
  task: Any,
  variables: Any,
  batch: dict[str, np.ndarray],
  class_names: Sequence[str],
  workdir: str,
) -> None:
  """Draws what the model says of some images into predictions.png.

  Args:
    task: with `predict(variables, images)`.
    variables: parameters and statistics.
    batch: an evaluation batch, of which the first images are shown.
    class_names: a name for each class.
    workdir: the run's directory.
  """
  shown = batch["mask"][:_SHOWN_PREDICTIONS] > 0
  images = batch["image"][:_SHOWN_PREDICTIONS][shown]
  probabilities = jax.jit(task.predict)(variables, images)
  with (epath.Path(workdir) / "predictions.png").open("wb") as file:
    plots.plot_predictions(
      images,
      batch["label"][:_SHOWN_PREDICTIONS][shown],
      np.asarray(probabilities),
      class_names,
      file,
    )


def describe_run(workdir: str, store: checkpoints.Checkpoints) -> str:
  """The last evaluation, where everything is, and what to try next."""
  rows = [
    row for row in metrics.read_metrics(workdir) if metrics.is_evaluation(row)
  ]
  last = {k.removeprefix("eval/"): v for k, v in rows[-1].items()}
  best = store.best_step()
  pictures = [
    f"{workdir}/{name}.png"
    for name in ("curves", "predictions")
    if (epath.Path(workdir) / f"{name}.png").exists()
  ]
  return f"""
final evaluation: {describe_evaluation(last)}
  checkpoints   {store.directory}: steps {store.steps()}, best {best}
  metrics       {workdir}/metrics.jsonl, tensorboard --logdir={workdir}
  pictures      {", ".join(pictures)}
  config        {workdir}/config.json, versions and command: run.json

reproduce the number:
  python eval.py --weights={workdir}
"""
