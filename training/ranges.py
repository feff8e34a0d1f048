"""Which values the fields of a config may have, as a table and one check."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_collections


@dataclasses.dataclass(frozen=True)
class Number:
  """A finite number from `low` to `high`.

  Attributes:
    low: the least, itself allowed unless `above`.
    high: the greatest, itself allowed unless `below`.
    above: whether it must be larger than `low`.
    below: whether it must be smaller than `high`.
    whole: whether it must be an int.
  """

  low: float = 0
  high: float = math.inf
  above: bool = False
  below: bool = False
  whole: bool = False

  def admits(self, value: Any) -> bool:
    """Whether a field may have the value."""
    return (
      is_number(value)
      # An int may be too large for `math.isfinite`.
      and (isinstance(value, int) or (math.isfinite(value) and not self.whole))
      and (self.low < value if self.above else self.low <= value)
      and (value < self.high if self.below else value <= self.high)
    )

  def __str__(self) -> str:
    """As "a number in [0, 1)"."""
    kind = "whole number" if self.whole else "number"
    left = "(" if self.above else "["
    right = ")" if self.below or self.high == math.inf else "]"
    return f"a {kind} in {left}{self.low}, {self.high}{right}"


@dataclasses.dataclass(frozen=True)
class OneOf:
  """One of a few words."""

  words: tuple[str, ...]

  def admits(self, value: Any) -> bool:
    """Whether a field may have the value."""
    return value in self.words

  def __str__(self) -> str:
    """As "one of a, b"."""
    return f"one of {', '.join(self.words)}"


Range = Number | OneOf


def is_number(value: Any) -> bool:
  """Whether a value is an int or a float, which True is not here."""
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def check(
  config: ml_collections.ConfigDict,
  ranges: Mapping[str, Range],
  prefix: str = "",
) -> None:
  """Raises ValueError for the first field that is out of its range.

  Args:
    config: with the fields.
    ranges: by field, as "loss.label_smoothing".
    prefix: of the fields, for the error, as "optimizer.".
  """
  for field, allowed in ranges.items():
    value = config
    for part in field.split("."):
      value = value[part]
    if not allowed.admits(value):
      raise ValueError(f"{prefix}{field}={value!r} must be {allowed}.")
