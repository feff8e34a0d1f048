"""An XProf trace of a few steps, away from compilation and start-up."""

import shutil
import tempfile

import jax

import storage

_SKIP_STEPS = 3
_TRACED_STEPS = 5


class StepProfiler:
  """Traces steps 4 to 8 after the start into `<workdir>/profile`."""

  def __init__(self, workdir: str, *, first_step: int, enabled: bool):
    self._directory = storage.path(workdir) / "profile"
    # Where XProf writes: it knows no URLs.
    self._local = ""
    self._start = first_step + _SKIP_STEPS
    self._enabled = enabled
    self._running = False

  def before_step(self, step: int) -> None:
    """To be called with the number of steps done, before each step."""
    if not self._enabled:
      return
    if step == self._start:
      remote = storage.is_remote(self._directory)
      self._local = tempfile.mkdtemp() if remote else str(self._directory)
      jax.profiler.start_trace(self._local)
      self._running = True
    elif step == self._start + _TRACED_STEPS:
      self.close()

  def close(self) -> None:
    """Ends the trace, also when the run was shorter than it."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
      if storage.is_remote(self._directory):
        storage.upload(self._local, self._directory)
        shutil.rmtree(self._local)
      print(f"XProf trace of {_TRACED_STEPS} steps: {self._directory}")
