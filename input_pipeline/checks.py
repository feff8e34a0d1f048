"""Checks of numbers in a config, for all rooms."""

import math


def check_integer(name: str, value: int, least: int) -> None:
  """Raises `ValueError` unless it is an int of at least `least`."""
  if type(value) is not int or value < least:
    raise ValueError(
      f"{name} is {value!r}, but it must be an int of at least {least}."
    )


def check_number(name: str, value: float, greatest: float = math.inf) -> None:
  """Raises `ValueError` unless it is finite, from 0 to `greatest`."""
  if not (0 <= value <= greatest and value < math.inf):
    end = "" if greatest == math.inf else f" to {greatest}"
    raise ValueError(f"{name} is {value}, but must be a number from 0{end}.")


def check_interval(name: str, interval: tuple[float, float]) -> None:
  """Raises `ValueError` unless it is two positive numbers in order."""
  if len(interval) != 2 or not 0 < interval[0] <= interval[1] < math.inf:
    raise ValueError(
      f"{name} is {interval}, but it must be a pair 0 < least <= greatest."
    )


def check_probability(probability: float) -> None:
  """Raises `ValueError` unless it is in [0, 1]."""
  check_number("probability", probability, 1)
