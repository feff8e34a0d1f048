"""Where the numbers of a run go: a JSON-lines file, TensorBoard, one line."""

import contextlib
import difflib
import json
import math
import socket
import struct
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax

import storage
from training.event_files import event_pb2, masked_crc32c, summary_pb2

_FLUSH_SECONDS = 60.0


class MetricsError(RuntimeError):
  """The numbers of a run could not be written."""


class MetricWriter:
  """Writes `<workdir>/metrics.jsonl` and TensorBoard events.

  Only process 0 writes. A resumed run first drops the lines that come after
  its checkpoint, so that the file reads as if the run had never stopped.

  A context manager; closing does not replace an error that is on its way.
  """

  def __init__(self, workdir: str, *, resume_step: int, evaluated: bool):
    """Opens both.

    Args:
      workdir: where metrics.jsonl and tensorboard/ are.
      resume_step: the step of the checkpoint, 0 for a new run.
      evaluated: whether that checkpoint was saved after its evaluation.

    Raises:
      MetricsError: if they cannot be written.
    """
    self._workdir = workdir
    self._rows: storage.GrowingFile | None = None
    if jax.process_index() != 0:
      return
    try:
      self._open(resume_step, evaluated)
    except OSError as error:
      raise self._write_error(error) from error

  def _open(self, resume_step: int, evaluated: bool) -> None:
    folder = storage.path(self._workdir)
    kept = [
      row
      for row in read_metrics(self._workdir)
      if row["step"] < resume_step
      or (row["step"] == resume_step and (evaluated or not is_evaluation(row)))
    ]
    path = folder / "metrics.jsonl"
    storage.write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
    self._rows = storage.GrowingFile(path, append=True)
    # Not tensorboardX's writers: one writes in a thread of its own, and when
    # that has died of a full disk the training waits for it for ever; the
    # other opens URLs as local files.
    storage.make_folder(folder / "tensorboard")
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
    self._events = storage.GrowingFile(folder / "tensorboard" / name)
    self._flushed = time.monotonic()
    self._write_event(file_version="brain.Event:2")
    # TensorBoard drops what an earlier process wrote from this step on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write_event(step=resume_step + 1, session_log=start)

  def _write_event(self, **fields: Any) -> None:
    event = event_pb2.Event(wall_time=time.time(), **fields)
    self._events.write(_record(event.SerializeToString()))

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Appends one line; NaN and infinity become null, as JSON has neither.

    Raises:
      MetricsError: if it cannot be written.
    """
    if self._rows is None:
      return
    row = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    values = [
      summary_pb2.Summary.Value(tag=name, simple_value=value)
      for name, value in metrics.items()
    ]
    try:
      self._rows.write((json.dumps({"step": step} | row) + "\n").encode())
      if self._rows.grows:
        self._rows.flush()
      self._write_event(step=step, summary=summary_pb2.Summary(value=values))
    except OSError as error:
      raise self._write_error(error) from error
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Makes all rows seen; to be called before a checkpoint that is past them.

    Raises:
      MetricsError: if they cannot be written.
    """
    if self._rows is None:
      return
    try:
      self._rows.flush()
      self._events.flush()
    except OSError as error:
      raise self._write_error(error) from error
    self._flushed = time.monotonic()

  def __enter__(self) -> "MetricWriter":
    return self

  def __exit__(self, kind: type | None, *_: object) -> None:
    """Flushes and closes both."""
    if self._rows is None:
      return
    try:
      with contextlib.closing(self._events):
        self._rows.close()
    except OSError as error:
      if kind is None:
        raise self._write_error(error) from error

  def _write_error(self, error: OSError) -> MetricsError:
    return MetricsError(
      f"The metrics could not be written to {self._workdir}: {error}."
    )


def _record(data: bytes) -> bytes:
  """A record of TensorFlow's: length, its checksum, data, their checksum."""
  length = struct.pack("<Q", len(data))
  return b"".join(
    (
      length,
      struct.pack("<I", masked_crc32c(length)),
      data,
      struct.pack("<I", masked_crc32c(data)),
    )
  )


def check_best_metric(name: str, names: Collection[str]) -> None:
  """Raises ValueError if no checkpoint can be the best by a metric.

  Args:
    name: of the metric, `checkpoint.best_metric`.
    names: what evaluations of this run have.
  """
  if name not in names:
    near = difflib.get_close_matches(name, names)
    raise ValueError(
      f"checkpoint.best_metric={name!r} is not what is evaluated. "
      + (f"Did you mean {near[0]}? " if near else "")
      + f"There are {', '.join(names)}."
    )


def better(
  name: str, direction: str, result: dict[str, float] | None
) -> float | None:
  """The metric of an evaluation, turned round if the lowest is the best.

  Args:
    name: of the metric.
    direction: "min" or "max", whichever is better.
    result: of the evaluation, or None if there was none.

  Returns:
    A number, larger for better; None if there is none, as for NaN.
  """
  value = math.nan if result is None else result.get(name, math.nan)
  if not math.isfinite(value):
    return None
  return value if direction == "max" else -value


def is_evaluation(row: dict[str, Any]) -> bool:
  """Whether a row of metrics.jsonl came from an evaluation."""
  return not any(name.startswith("train/") for name in row)


def read_metrics(workdir: str) -> list[dict[str, Any]]:
  """All rows of `<workdir>/metrics.jsonl`, without a torn last line."""
  saved = storage.read_bytes_if_there(storage.path(workdir) / "metrics.jsonl")
  rows = []
  for line in (saved or b"").decode().splitlines():
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

  def __init__(
    self,
    total_steps: int,
    units_per_step: int,
    *,
    unit: str,
    shown: Mapping[str, str],
    interval: float = 10.0,
  ):
    """Starts without a line.

    Args:
      total_steps: of the run.
      units_per_step: what a step goes through, for the throughput.
      unit: the name of one of these, as "image".
      shown: metrics of a step, each with a format, as {"accuracy": ".1%"}.
      interval: seconds between lines where the output is no terminal.
    """
    self._total_steps = total_steps
    self._units_per_step = units_per_step
    self.unit = unit
    self._shown_metrics = shown
    self._in_place = sys.stdout.isatty()
    self._interval = 0.1 if self._in_place else interval
    self._started: tuple[int, float] | None = None
    self._paused: float | None = None
    self._shown = 0.0
    self._width = 0

  def update(self, step: int, metrics: dict[str, float]) -> float:
    """Shows the step and returns units per second since the first update.

    Neither counts the time between `pause` and `resume`.
    """
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
        f"step {step}/{self._total_steps}  "
        + "".join(
          f"{name} {metrics[f'train/{name}']:{form}}  "
          for name, form in self._shown_metrics.items()
        )
        + f"{rate * self._units_per_step:.0f} {self.unit}s/s"
        f"  {format_seconds(left)} left"
      )
    return rate * self._units_per_step

  def pause(self) -> None:
    """Stops the clock and ends the line, for what is not training."""
    if self._paused is None:
      self._paused = time.perf_counter()
    if self._width:
      print(flush=True)
      self._width = 0

  def resume(self) -> None:
    """Lets the clock go on after `pause`."""
    if self._paused is not None and self._started is not None:
      step, start = self._started
      self._started = (step, start + time.perf_counter() - self._paused)
    self._paused = None

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
