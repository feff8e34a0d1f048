"""Timing programs in turns, so that what else a machine does meets all."""

import time
from collections.abc import Callable

from absl import flags

# Of every program that times in turns.
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 3.0, "Least time of one turn.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object a row.")

Run = Callable[[], None]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def rate(run: Run, amount: float, seconds: float, clock: str = "wall") -> float:
  """Runs for at least `seconds`, and once before; returns amounts a second.

  Args:
    run: does it once and waits for it.
    amount: what one run does, as images.
    seconds: least time.
    clock: a key of CLOCKS: seconds of the wall, or of this process on a CPU.
  """
  run()
  now = CLOCKS[clock]
  count, started = 0, now()
  while now() - started < seconds:
    run()
    count += 1
  return count * amount / (now() - started)


def seconds_of(run: Run) -> float:
  """Returns the time of one run, as of the first, which compiles."""
  started = time.perf_counter()
  run()
  return time.perf_counter() - started
