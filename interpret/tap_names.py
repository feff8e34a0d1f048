"""Which taps a pattern means, in the order of layers."""

import fnmatch
import re
from collections.abc import Iterable

from models import registry


def matching(pattern: str, known: Iterable[str]) -> tuple[str, ...]:
  """Returns the names that a shell pattern matches, layer 2 before layer 10.

  Args:
    pattern: as "layer_*/hidden_state".
    known: names, as those of `interpret.list_taps`.

  Raises:
    ValueError: if none matches, with the nearest that there are.
  """
  known = tuple(known)
  names = fnmatch.filter(known, pattern)
  if not names:
    raise registry.unknown("tap", pattern, known)
  return tuple(sorted(names, key=natural))


def natural(name: str) -> list[tuple[bool, int, str]]:
  """A key to sort names by in which numbers count as numbers."""
  parts = re.split(r"(\d+)", name)
  return [
    (part.isdigit(), int(part) if part.isdigit() else 0, part)
    for part in parts
    if part
  ]
