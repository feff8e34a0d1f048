"""Where the numbers of a run go: a JSON-lines file, TensorBoard, one line."""

import json
import math
import sys
import time
from typing import Any

import jax
from etils import epath
from tensorboardX import SummaryWriter


class MetricWriter:
  """Writes `<workdir>/metrics.jsonl` and TensorBoard events.

  Only process 0 writes. A resumed run first drops the lines that come after
  its checkpoint, so that the file reads as if the run had never stopped.
  """

  def __init__(self, workdir: str, *, resume_step: int, evaluated: bool):
    """Opens both.

    Args:
      workdir: where metrics.jsonl and tensorboard/ are.
      resume_step: the step of the checkpoint, 0 for a new run.
      evaluated: whether that checkpoint was saved after its evaluation.
    """
    self._file = None
    if jax.process_index() != 0:
      return
    path = epath.Path(workdir) / "metrics.jsonl"
    kept = [
      row
      for row in read_metrics(workdir)
      if row["step"] < resume_step
      or (row["step"] == resume_step and (evaluated or not is_evaluation(row)))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    self._file = path.open("a")
    self._events = SummaryWriter(
      str(epath.Path(workdir) / "tensorboard"), purge_step=resume_step + 1
    )

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Appends one line; NaN and infinity become null, as JSON has neither."""
    if self._file is None:
      return
    row = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    self._file.write(json.dumps({"step": step} | row) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes and closes both."""
    if self._file is not None:
      self._file.close()
      self._events.close()


def is_evaluation(row: dict[str, Any]) -> bool:
  """Whether a row of metrics.jsonl came from an evaluation."""
  return any(name.startswith("eval/") for name in row)


def read_metrics(workdir: str) -> list[dict[str, Any]]:
  """All rows of `<workdir>/metrics.jsonl`, without a torn last line."""
  path = epath.Path(workdir) / "metrics.jsonl"
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      # A killed process may leave half a line, always the last one.
      break
  return rows


class ProgressLine:
  """One line that a terminal shows updated in place.

  Where the output is no terminal, such as a log file, a line is printed at
  most each `interval` seconds.
  """

  def __init__(self, total_steps: int, batch_size: int, interval: float = 10.0):
    self._total_steps = total_steps
    self._batch_size = batch_size
    self._in_place = sys.stdout.isatty()
    self._interval = 0.1 if self._in_place else interval
    self._started: tuple[int, float] | None = None
    self._shown = 0.0
    self._width = 0

  def update(self, step: int, metrics: dict[str, float]) -> float:
    """Shows the step and returns images per second since the first update."""
    now = time.perf_counter()
    if self._started is None:
      # The first step's time is compilation and start-up.
      self._started = (step, now)
    first, start = self._started
    rate = (step - first) / (now - start) if step > first else 0.0
    last = step == self._total_steps
    if jax.process_index() == 0 and (
      last or now - self._shown >= self._interval
    ):
      self._shown = now
      left = (self._total_steps - step) / rate if rate else math.nan
      self._print(
        f"step {step}/{self._total_steps}"
        f"  loss {metrics['train/loss']:.4f}"
        f"  accuracy {metrics['train/accuracy']:.1%}"
        f"  {rate * self._batch_size:.0f} images/s"
        f"  {format_seconds(left)} left"
      )
    return rate * self._batch_size

  def pause(self) -> None:
    """Ends the line, so that something else can be printed below it."""
    if self._width:
      print(flush=True)
      self._width = 0

  def _print(self, text: str) -> None:
    if self._in_place:
      print("\r" + text.ljust(self._width), end="", flush=True)
      self._width = len(text)
    else:
      print(text, flush=True)


def format_seconds(seconds: float) -> str:
  """12 s, 3 min 05 s or 2 h 04 min; "?" if unknown."""
  if not math.isfinite(seconds):
    return "?"
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60:02d} s"
  return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
