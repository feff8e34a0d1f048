"""Names of values in scanned layers, as if layers came one after another.

A scan over repeats of a pattern has one module "layers" with as many values at
each path as there are repeats. They are named as those of an unscanned model,
"layer_3/hidden_state", so that what is written for one fits the other.
"""

import re
from collections.abc import Mapping

import numpy as np

from models import edits

# The module of scanned layers, and one of the layers that it repeats.
_SCANNED = "layers"
_LAYER = re.compile(r"layer_(\d+)")


def places(known: Mapping[str, tuple[int, ...]]) -> dict[str, edits.Place]:
  """Where the value of each name is.

  Args:
    known: for each value's path () or, in scanned layers, their number in a
      tuple.

  Returns:
    By name the path, and which of the values there; in the order of `natural`.
  """
  repeated = {}
  for path in known:
    stem, found = _scanned_layer(path)
    if found:
      repeated.setdefault(stem, set()).add(found)
  places = {}
  for path, layers in known.items():
    for index in np.ndindex(layers):
      name = _name(path, index, repeated) if layers else path
      places[name] = (path, index)
  return {name: places[name] for name in sorted(places, key=natural)}


def natural(name: str) -> list[tuple[bool, int, str]]:
  """A key to sort names by in which numbers count: layer 2 before layer 10."""
  parts = re.split(r"(\d+)", name)
  return [
    (part.isdigit(), int(part) if part.isdigit() else 0, part)
    for part in parts
    if part
  ]


def _scanned_layer(path: str) -> tuple[str, str]:
  """What stands before "layers/layer_0/...", and "layer_0"; or ""."""
  parts = path.split("/")
  if _SCANNED not in parts[:-1]:
    return "", ""
  at = parts.index(_SCANNED)
  found = parts[at + 1]
  return "/".join(parts[:at]), found if _LAYER.fullmatch(found) else ""


def _name(path, index, repeated) -> str:
  """The name that the value of a scanned layer would have outside of a scan."""
  parts = path.split("/")
  if len(index) != 1 or _SCANNED not in parts[:-1]:
    return "/".join((path, *map(str, index)))
  at, (number,) = parts.index(_SCANNED), index
  rest = parts[at + 1 :]
  stem, found = _scanned_layer(path)
  if found:
    own = int(_LAYER.fullmatch(found)[1])
    number, rest = number * len(repeated[stem]) + own, rest[1:]
  return "/".join((*parts[:at], f"layer_{number}", *rest))
