"""Notice that this process should stop, agreed on by all processes."""

import signal
from types import FrameType

import jax
from absl import logging
from jax.experimental import multihost_utils


class PreemptionGuard:
  """Turns SIGTERM into a flag that the loop polls between steps.

  The signal may reach one host only, and a collective that some hosts skip
  hangs the others; with several processes the step to stop at is therefore
  agreed on through JAX's coordination service.
  """

  def __init__(self):
    self._received = False
    self._previous = None

  def __enter__(self) -> "PreemptionGuard":
    if jax.process_count() == 1:
      self._previous = signal.signal(signal.SIGTERM, self._receive)
    return self

  def __exit__(self, *unused) -> None:
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, self._previous)

  def _receive(self, signum: int, frame: FrameType | None) -> None:
    del signum, frame
    self._received = True
    logging.warning("SIGTERM: saving at the next step, then stopping.")

  def should_stop(self, step: int) -> bool:
    """Whether to save and stop after `step`; the same on every process."""
    if jax.process_count() > 1:
      self._received = self._received or (
        multihost_utils.reached_preemption_sync_point(step)
      )
    return self._received
