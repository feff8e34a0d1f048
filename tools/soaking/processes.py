"""Programs of ours in processes that say what they are doing, to be killed.

Importing takes longer than all else that a start of a small run does, and
writes nothing. So it is done once, and each start is a fork of that process,
which then runs the program's file as `python <file>` does.
"""

import contextlib
import os
import runpy
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path


class Program:
  """A process that runs a program, and the phases that it tells."""

  def __init__(self, pid: int, events: int):
    self.pid = pid
    self.phase = "starting"
    # The exit code, negative for a signal; None while it runs.
    self.code: int | None = None
    self._events = events

  def read(self, seconds: float) -> list[str]:
    """The phases that it has come to since the last call, or waits for one."""
    found = []
    while select.select([self._events], [], [], 0 if found else seconds)[0]:
      told = os.read(self._events, 4096).decode().split()
      if not told:
        break
      found += told
      self.phase = found[-1]
    return found

  def poll(self) -> int | None:
    """The exit code if it has ended."""
    if self.code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        self.code = os.waitstatus_to_exitcode(status)
    return self.code

  def wait(self, seconds: float) -> int | None:
    """The exit code if it ends by itself until then."""
    end = time.monotonic() + seconds
    while self.poll() is None and time.monotonic() < end:
      time.sleep(0.01)
    return self.code

  def kill(self) -> None:
    """Ends it as a machine does that loses its power."""
    if self.poll() is None:
      os.kill(self.pid, signal.SIGKILL)
      self.wait(60)

  def close(self) -> None:
    """Ends it if it runs, and forgets it."""
    self.kill()
    os.close(self._events)


@contextlib.contextmanager
def started(
  arguments: Sequence[str], log: Path, processes: int = 1
) -> Iterator[list[Program]]:
  """Starts a program, and ends it if it still runs in the end.

  Args:
    arguments: the file and what follows it.
    log: what is printed is added here.
    processes: that train together, on this machine.

  Yields:
    One of each, process 0 first.
  """
  address = f"localhost:{_free_port()}" if processes > 1 else None
  programs = [
    _fork(arguments, log, address, index, processes)
    for index in range(processes)
  ]
  try:
    yield programs
  finally:
    for program in programs:
      program.close()


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def _fork(arguments, log, address, index, processes) -> Program:
  reader, writer = os.pipe()
  sys.stdout.flush()
  pid = os.fork()
  if pid:
    os.close(writer)
    return Program(pid, reader)
  code = 1
  try:
    os.close(reader)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = _run(arguments, writer, address, index, processes)
  except BaseException:
    traceback.print_exc()
  finally:
    with contextlib.suppress(Exception):
      sys.stdout.flush()
      sys.stderr.flush()
    # Nothing of the parent's is to be done again at the exit.
    os._exit(code)


def _run(arguments, events, address, index, processes) -> int:
  _tell_phases(events)
  if address is not None:
    import jax

    jax.distributed.initialize(address, processes, index)
  sys.argv = list(arguments)
  try:
    runpy.run_path(arguments[0], run_name="__main__")
  except SystemExit as end:
    if isinstance(end.code, str):
      print(end.code, file=sys.stderr)
    return end.code if isinstance(end.code, int) else int(end.code is not None)
  return 0


def _tell_phases(events: int) -> None:
  """Writes to a pipe what the programs come to."""
  from experiment import weights
  from training import phases, summary

  def tell(name: str) -> None:
    os.write(events, f"{name}\n".encode())

  enter = phases.Phases.enter

  def enter_and_tell(self, name):
    tell(name)
    enter(self, name)

  phases.Phases.enter = enter_and_tell
  finish = summary.finish

  def finish_and_tell(*args):
    tell("sampling")
    finish(*args)

  summary.finish = finish_and_tell
  load = weights.load_weights

  def load_and_tell(*args, **options):
    tell("restoring")
    loaded = load(*args, **options)
    tell("sampling")
    return loaded

  weights.load_weights = load_and_tell
