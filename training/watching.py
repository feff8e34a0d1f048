"""A thread that ends this process when the others cannot go on.

JAX notices a process that died, by its heartbeats. It does not notice one that
lives and hangs, as in reading data, nor does an error in one process reach the
others, which would wait for it in a collective for ever.
"""

import contextlib
import os
import sys
import threading
import time
from typing import NoReturn

import jax

from training import hosts

_INTERVAL = 2.0
# An error is told to the others, or found to be one of all, within these.
_GRACE = 5.0
_FAILED, _ENDING, _ALIVE = "foveal/failed", "foveal/ending", "foveal/alive"


def tell(kind: type | None, error: BaseException | None, _: object) -> None:
  """Tells the others of an error that is on its way; an exit callback.

  To be called before anything that waits for them, as the end of a save does.
  """
  del kind
  if error is not None and Watch.current is not None:
    Watch.current.fail(error)


class Watch:
  """Looks after the other processes from a thread."""

  current: "Watch | None" = None

  def __init__(self, limit: float):
    """Starts.

    Args:
      limit: seconds without `hosts.went_on` after which the process ends.
    """
    # At its exit JAX forgets all of this before it waits for the others.
    self._client = hosts.client()
    self._index, self._count = jax.process_index(), jax.process_count()
    self._limit = limit
    self._stopped = threading.Event()
    self._beats = 0
    Watch.current = self
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def stop(self) -> None:
    """Looks no longer."""
    self._stopped.set()
    # Python's end would break it off in the middle of a call, and abort.
    self._thread.join(_GRACE)
    Watch.current = None

  def fail(self, error: BaseException) -> None:
    """Tells the others of an error, and ends this process soon.

    Not at once, so that a traceback is seen, and an error of all processes is
    said by each of them. Leaving as usual would wait for the others.
    """
    text = f"{type(error).__name__}: {error}"[:1000]
    self._put(_FAILED, text)
    self._put(_ENDING, "")
    self.stop()
    arguments = (f"this process failed: {text}", self._read(_ALIVE))
    threading.Thread(target=self._end_soon, args=arguments, daemon=True).start()

  def _end_soon(self, text: str, alive: dict[int, str]) -> None:
    """Says as well of whom there is no sign of life, which may be the cause."""
    time.sleep(_GRACE)
    now = self._read(_ALIVE)
    silent = {i for i, beats in alive.items() if now.get(i) == beats}
    # Who ends does not beat any more.
    silent -= {self._index, *self._read(_ENDING)}
    if silent:
      text = (
        f"there is no sign of {hosts.named(silent)}, killed or on a host that "
        f"is gone; {text}"
      )
    self._end(f"The run ends on all hosts: {text}")

  def _run(self) -> None:
    last, since = hosts.done, time.monotonic()
    while not self._stopped.wait(_INTERVAL):
      self._beats += 1
      self._put(_ALIVE, f"{self._beats} {hosts.done}")
      failed = self._read(_FAILED)
      if failed:
        self._put(_ENDING, "")
        first = min(failed)
        self._end_soon(
          f"{hosts.named([first])} failed: {failed[first]}",
          self._read(_ALIVE),
        )
      if hosts.done != last:
        last, since = hosts.done, time.monotonic()
      elif time.monotonic() - since > self._limit + _GRACE:
        self._end(self._stalled())

  def _stalled(self) -> str:
    done = dict.fromkeys(range(self._count), 0)
    done |= {i: int(text.split()[1]) for i, text in self._read(_ALIVE).items()}
    behind = [i for i in done if done[i] < max(done.values())]
    return f"Nothing went on for {self._limit:.0f} s (--wait_limit): " + (
      f"{hosts.named(behind)} is behind the others."
      if behind
      else "all are at the same batch, which waits for the devices or for what "
      "connects them."
    )

  # One call that fails is no sign of anything. Where the service is gone JAX
  # ends the process.
  def _put(self, folder: str, text: str) -> None:
    with contextlib.suppress(RuntimeError):
      self._client.key_value_set(
        f"{folder}/{self._index}", text, allow_overwrite=True
      )

  def _read(self, folder: str) -> dict[int, str]:
    with contextlib.suppress(RuntimeError):
      return hosts.read(self._client, folder)
    return {}

  def _end(self, text: str) -> NoReturn:
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if self._index == 0:
      # It holds these texts; as soon as it is gone JAX aborts the others.
      time.sleep(_GRACE)
    # Whatever else runs here may wait for ever. To a checkpoint that is being
    # written it is as a kill.
    os._exit(1)
