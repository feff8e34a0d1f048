"""Durations that carry their unit: "30 epochs", "500 steps", "5 percent"."""

import dataclasses
import re

_MOST_STEPS = 2**31 - 1  # The state's counter is int32.
_UNITS = ("steps", "epochs", "percent", "examples")
_PATTERN = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-z]+?)s?\s*")


@dataclasses.dataclass(frozen=True)
class Clock:
  """What a duration is measured against.

  Attributes:
    examples_per_epoch: examples in the training split.
    batch_size: examples in one step, over all processes.
    total_steps: steps of the whole run, which "percent" refers to; None while
      the total itself is being worked out.
  """

  examples_per_epoch: int
  batch_size: int
  total_steps: int | None = None

  def steps(self, duration: str, argument: str = "duration") -> int:
    """Converts a duration to a whole number of steps, rounded to nearest.

    Args:
      duration: a number and a unit: steps, epochs, percent or examples. Epochs
        may be fractions; they follow each other without a gap, so that 3
        epochs of 100 examples in batches of 32 are 9 steps.
      argument: the name of the config field, for the error.

    Returns:
      Steps, 0 for a duration of 0 or a share of 0 steps, and at least 1
      otherwise.

    Raises:
      ValueError: if the text is not a number and a unit, is in percent while
        the total is unknown, or is more steps than can be counted.
    """
    match = _PATTERN.fullmatch(str(duration))
    unit = match and next(
      (u for u in _UNITS if u.rstrip("s") == match[2]), None
    )
    if unit is None:
      raise ValueError(
        f"{argument}={duration!r} is not a duration: write a number and one of "
        f"{', '.join(_UNITS)}, such as '30 epochs' or '500 steps'."
      )
    amount = float(match[1].replace("_", ""))
    if unit == "percent" and self.total_steps is None:
      raise ValueError(
        f"{argument}={duration!r} is in percent of the whole run, which is not "
        "known here: use steps, epochs or examples."
      )
    steps_per_unit = {
      "steps": 1.0,
      "epochs": self.examples_per_epoch / self.batch_size,
      "percent": (self.total_steps or 0) / 100,
      "examples": 1 / self.batch_size,
    }[unit]
    steps = amount * steps_per_unit
    if steps > _MOST_STEPS:
      raise ValueError(
        f"{argument}={duration!r} is more than {_MOST_STEPS} steps, which is "
        "what 32 bits count to."
      )
    return max(round(steps), 1) if steps else 0


def is_due(step: int, every: int, total_steps: int) -> bool:
  """Whether something done each `every` steps (0: never) is due after `step`.

  The last step is always due, so that a run ends evaluated and saved.
  """
  return step == total_steps or (every > 0 and step % every == 0)
