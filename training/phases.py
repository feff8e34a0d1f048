"""Where the time of a run goes, and a sign of life while it goes there."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from absl import logging

from training import console, metrics

STEPS = "steps"
# Of starts that were killed: what they did after the checkpoint that is left.
LOST = "lost"


class Phases:
  """Seconds of each phase of a run, of all its starts together.

  A start is in one phase at a time. What it has done up to a checkpoint is
  saved with it; what a killed start did after that is `LOST`, and so are steps
  that have to be done again: only what led to the state there is counts as
  steps.
  """

  def __init__(self):
    """Begins a start in the phase "starting"."""
    self._seconds: dict[str, float] = {}
    self._name = "starting"
    self._began = self._since = self._alive = time.perf_counter()

  def go_on(self, saved: Mapping[str, float], passed: float) -> None:
    """Adds the starts before this one.

    Args:
      saved: what `seconds` was when the checkpoint was saved, empty for a new
        run.
      passed: seconds that all those starts took; what is more than `saved`
        was lost.
    """
    lost = max(passed - sum(saved.values()), 0.0)
    for name, seconds in {**saved, LOST: saved.get(LOST, 0.0) + lost}.items():
      self._seconds[name] = self._seconds.get(name, 0.0) + seconds

  @contextlib.contextmanager
  def during(self, name: str) -> Iterator[None]:
    """What is done inside is of this phase."""
    before = self._name
    self.enter(name)
    try:
      yield
    finally:
      self.enter(before)

  def enter(self, name: str) -> None:
    """From now on the run is in this phase."""
    now = time.perf_counter()
    passed = now - self._since
    self._seconds[self._name] = self._seconds.get(self._name, 0.0) + passed
    self._name, self._since, self._alive = name, now, now

  def step_done(self) -> None:
    """A sign of life."""
    self._alive = time.perf_counter()

  def current(self) -> tuple[str, float]:
    """The phase, and the seconds since its last sign of life."""
    return self._name, time.perf_counter() - self._alive

  def of_this_start(self) -> float:
    """Seconds that this start has taken until now."""
    return time.perf_counter() - self._began

  def seconds(self) -> dict[str, float]:
    """Seconds of each phase until now, of all starts."""
    now = time.perf_counter() - self._since
    return self._seconds | {
      self._name: self._seconds.get(self._name, 0.0) + now
    }

  def goodput(self) -> float:
    """The share of the time that went into steps that count."""
    seconds = self.seconds()
    return seconds.get(STEPS, 0.0) / max(sum(seconds.values()), 1e-9)

  def describe(self) -> str:
    """All time, and the share of each phase that has one percent of it."""
    seconds = self.seconds()
    total = sum(seconds.values())
    shares = sorted(seconds.items(), key=lambda pair: -pair[1])
    return f"{metrics.format_seconds(total)}, of all starts together: " + (
      ", ".join(
        f"{share / total:.0%} {name}"
        for name, share in shares
        if share >= total / 100
      )
    )


class Heartbeat:
  """A thread that says what a run does while nothing else is said.

  A compilation, an evaluation or a storage that does not answer can take
  minutes; whoever watches should know which it is.
  """

  def __init__(
    self,
    phases: Phases,
    beat: Callable[[], None],
    *,
    every: float = 10.0,
    quiet: float = 60.0,
  ):
    """Starts the thread.

    Args:
      phases: of the run.
      beat: is called at each beat; what it raises is logged once.
      every: seconds from one beat to the next.
      quiet: seconds without a sign of life after which a line is printed, and
        again after as many.
    """
    self._phases, self._beat = phases, beat
    self._every, self._quiet = every, quiet
    self._failed, self._due = False, quiet
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._run, name="heartbeat", daemon=True
    )
    self._thread.start()

  def _run(self) -> None:
    while not self._stop.wait(self._every):
      self.tick()

  def tick(self) -> None:
    """One beat, which the thread makes."""
    name, silent = self._phases.current()
    if silent < self._quiet:
      self._due = self._quiet
    elif silent >= self._due:
      self._due = silent + self._quiet
      console.say(f"{time.strftime('%H:%M:%S')} alive: {_tell(name, silent)}")
    self._call()

  def _call(self) -> None:
    try:
      self._beat()
    except Exception as error:
      # A sign of life that cannot be written is no reason to end a run.
      if not self._failed:
        logging.warning("The time of this start cannot be kept: %s", error)
      self._failed = True

  def close(self) -> None:
    """Beats once more and ends the thread."""
    self._stop.set()
    self._thread.join()
    self._call()


def _tell(name: str, silent: float) -> str:
  passed = metrics.format_seconds(silent)
  if name == STEPS:
    return f"no step has ended for {passed}"
  return f"{name} for {passed}"
