"""What a person sees at the end of a run."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
from absl import logging

import storage
from training import checkpoints, console, metrics, plots

_SHOWN_PREDICTIONS = 24


@contextlib.contextmanager
def attempt(what: str) -> Iterator[None]:
  """What comes after the last save must not turn a finished run into a failure.

  An error is said, with its reason, and the rest goes on.

  Args:
    what: is done, as "drawing the curves".
  """
  try:
    yield
  except Exception as error:
    logging.error(
      "The run is finished and its checkpoints are whole, but %s failed: %s: "
      "%s",
      what,
      type(error).__name__,
      error,
      exc_info=True,
    )


def finish(
  task: Any,
  variables: Any,
  eval_batches: Iterable[dict[str, np.ndarray]],
  class_names: Sequence[str],
  workdir: str,
  store: checkpoints.Checkpoints,
) -> None:
  """Draws the pictures of a finished run and says where everything is.

  Args:
    task: with `predict(variables, images)`.
    variables: parameters and statistics.
    eval_batches: of which the first images are shown.
    class_names: a name for each class.
    workdir: the run's directory.
    store: its checkpoints.
  """
  if jax.process_index() != 0:
    return
  with attempt("drawing the curves"):
    write_curves(workdir)
  # Other processes would have to take part in the predictions.
  if jax.process_count() == 1:
    with attempt("drawing the predictions"):
      write_predictions(task, variables, eval_batches, class_names, workdir)
  with attempt("summing up the run"):
    console.say(describe_run(workdir, store))


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
  _write_picture(
    workdir,
    "curves",
    lambda file: plots.plot_curves(metrics.read_metrics(workdir), file),
  )


def write_predictions(
  task: Any,
  variables: Any,
  batches: Iterable[dict[str, np.ndarray]],
  class_names: Sequence[str],
  workdir: str,
) -> None:
  """Draws what the model says of some images into predictions.png.

  Args:
    task: with `predict(variables, images)`.
    variables: parameters and statistics.
    batches: of an evaluation; the first images that count are shown.
    class_names: a name for each class.
    workdir: the run's directory.
  """
  images, labels = _first_examples(batches)
  probabilities = jax.jit(task.predict)(variables, images)
  _write_picture(
    workdir,
    "predictions",
    lambda file: plots.plot_predictions(
      images, labels, np.asarray(probabilities), class_names, file
    ),
  )


def _first_examples(
  batches: Iterable[dict[str, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
  """The first images and labels that the mask does not leave out."""
  found = []
  for batch in batches:
    rows = np.flatnonzero(batch["mask"])
    found += [(batch["image"][row], batch["label"][row]) for row in rows]
    if len(found) >= _SHOWN_PREDICTIONS:
      break
  images, labels = zip(*found[:_SHOWN_PREDICTIONS], strict=True)
  return np.stack(images), np.stack(labels)


def _write_picture(
  workdir: str, name: str, draw: Callable[[BinaryIO], None]
) -> None:
  # Whole or not at all, also in a bucket.
  picture = io.BytesIO()
  draw(picture)
  path = storage.path(workdir) / f"{name}.png"
  path.write_bytes(picture.getvalue())


def describe_run(workdir: str, store: checkpoints.Checkpoints) -> str:
  """The last evaluation, where everything is, and what to try next."""
  folder = storage.path(workdir)
  rows = [
    row for row in metrics.read_metrics(workdir) if metrics.is_evaluation(row)
  ]
  last = {k.removeprefix("eval/"): v for k, v in rows[-1].items()}
  best = store.best_step()
  quoted = storage.quote(folder)
  pictures = [
    f"{folder / name}.png"
    for name in ("curves", "predictions")
    if (folder / f"{name}.png").exists()
  ]
  return f"""
final evaluation: {describe_evaluation(last)}
  checkpoints   {store.directory}: steps {store.steps()}, best {best}
  metrics       {folder / "metrics.jsonl"}, tensorboard --logdir={quoted}
  pictures      {", ".join(pictures)}
  config        {folder / "config.json"}, versions and command: run.json

reproduce the number:
  python eval.py --weights={quoted}
"""
