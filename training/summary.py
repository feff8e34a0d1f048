"""What a person sees at the end of a run."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import jax
from absl import logging

import storage
from training import checkpoints, console, evaluation, metrics, plots


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
  evaluations: Sequence[evaluation.Evaluation],
  workdir: str,
  store: checkpoints.Checkpoints,
) -> None:
  """Draws the pictures of a finished run and says where everything is.

  Args:
    task: a `tasks.Task`.
    variables: of the model.
    evaluations: of the task.
    workdir: the run's directory.
    store: its checkpoints.
  """
  if jax.process_index() != 0:
    return
  files, text, commands = [], "", []
  with attempt("drawing the curves"):
    write_curves(workdir, task.curves)
    files.append("curves.png")
  # Other processes would have to take part in what the model does.
  if jax.process_count() == 1:
    with attempt("showing what the model does"):
      shown = task.show(variables, evaluations, workdir)
      files, text = [*files, *shown.files], shown.text
      commands = [*shown.commands]
  with attempt("summing up the run"):
    console.say(describe_run(task, workdir, store, files, text, commands))


def write_curves(workdir: str, names: Sequence[str]) -> None:
  """Draws metrics of metrics.jsonl into curves.png."""
  rows = metrics.read_metrics(workdir)
  write_picture(
    workdir, "curves.png", lambda file: plots.plot_curves(rows, names, file)
  )


def write_picture(
  workdir: str, name: str, draw: Callable[[BinaryIO], None]
) -> None:
  """Writes a file whole or not at all, also in a bucket."""
  picture = io.BytesIO()
  draw(picture)
  storage.write_whole(storage.path(workdir) / name, picture.getvalue())


def describe_run(
  task: Any,
  workdir: str,
  store: checkpoints.Checkpoints,
  files: Sequence[str] = (),
  text: str = "",
  commands: Sequence[str] = (),
) -> str:
  """The last evaluation, where everything is, and what to try next.

  Args:
    task: with `describe`.
    workdir: the run's directory.
    store: its checkpoints.
    files: pictures and the like that the workdir has.
    text: to be read.
    commands: that go on, beside the evaluation.
  """
  folder = storage.path(workdir)
  rows = [
    row
    for row in metrics.read_metrics(workdir)
    if any(name.startswith("eval/") for name in row)
  ]
  last = {k.removeprefix("eval/"): v for k, v in rows[-1].items()}
  quoted = storage.quote(folder)
  going_on = "".join(f"  {command}\n" for command in commands)
  return f"""
final evaluation: {task.describe(last)}
  checkpoints   {store.directory}: steps {store.steps()}, best {
    store.best_step()
  }
  metrics       {folder / "metrics.jsonl"}, tensorboard --logdir={quoted}
  to look at    {", ".join(str(folder / name) for name in files)}
  config        {folder / "config.json"}, versions and command: run.json
{text and f"{chr(10)}{text}{chr(10)}"}
reproduce the number:
  python eval.py --weights={quoted}
""" + (f"\ngo on with it:\n{going_on}" if commands else "")
