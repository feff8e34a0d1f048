"""Which taps a pattern means, in the order of layers."""

import fnmatch
from collections.abc import Iterable

from models import scanned_names, tap_errors


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
    raise tap_errors.unknown("tap", pattern, known)
  return tuple(sorted(names, key=scanned_names.natural))
