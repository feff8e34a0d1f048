"""Metrics of each step, read one step late so that the device never waits."""

import math

import jax

from training.metrics import MetricWriter, ProgressLine
from training.phases import Phases


class NonFiniteError(FloatingPointError):
  """The loss, the gradient or the parameters are NaN or infinite."""


class StepReporter:
  """Fetches, checks, writes and shows what each training step returned."""

  def __init__(
    self,
    writer: MetricWriter,
    progress: ProgressLine,
    phases: Phases,
  ):
    self._writer = writer
    self._progress = progress
    self._phases = phases
    self._pending: tuple[int, dict[str, jax.Array]] | None = None

  def push(self, step: int, metrics: dict[str, jax.Array | float]) -> None:
    """Takes the metrics of `step` and reports those of the step before.

    Raises:
      NonFiniteError: if those show that the run has diverged.
    """
    previous, self._pending = self._pending, (step, metrics)
    self._report(previous)

  def flush(self) -> None:
    """Reports what is pending; to be called before anything is saved."""
    previous, self._pending = self._pending, None
    self._report(previous)

  def _report(self, pending: tuple[int, dict[str, jax.Array]] | None) -> None:
    if pending is None:
      return
    step, metrics = pending
    row = {
      f"train/{name}": float(value)
      for name, value in jax.device_get(metrics).items()
    }
    self._phases.step_done()
    rate = self._progress.update(step, row)
    row[f"train/{self._progress.unit}s_per_second"] = rate
    row["train/goodput"] = round(self._phases.goodput(), 4)
    self._writer.write(step, row)
    for name in ("train/loss", "train/grad_norm", "train/param_norm"):
      if not math.isfinite(row[name]):
        raise NonFiniteError(f"{name} is {row[name]} at step {step}.")
