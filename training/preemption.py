"""Notice that this process should stop, agreed on by all processes."""

import signal
from types import FrameType

import jax
from absl import logging
from jax.experimental import multihost_utils


class PreemptionGuard:
  """Turns SIGTERM into a flag that the loop polls between steps.

  The signal may reach one host only, and a collective that some hosts skip
  hangs the others. With several processes JAX's coordination service therefore
  has them all stop at the same *poll*: the one after the latest that any of
  them had come to. Polls are counted, and not steps, since an evaluation has
  many of them within one step; what counts is that all processes poll equally
  often, as they do where they train and evaluate the same number of batches.
  """

  def __init__(self):
    self._received = False
    self._polls = 0
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

  def should_stop(self) -> bool:
    """Whether to save and stop now; the same on every process."""
    if jax.process_count() > 1 and not self._received:
      self._polls += 1
      self._received = multihost_utils.reached_preemption_sync_point(
        self._polls
      )
    return self._received
