"""Kinds of data by name, with options of their own."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def create(
  kind: str, known: Mapping[str, type[T]], name: str, options: Mapping[str, Any]
) -> T:
  """What a name stands for, with some of its fields.

  Args:
    kind: what the names are of, for people, as "source".
    known: dataclasses by name.
    name: one of them.
    options: some of its fields.

  Raises:
    ValueError: if there is no such name, it has no such field, or a value does
      not fit.
  """
  if name not in known:
    raise _unknown(kind, name, known)
  cls = known[name]
  fields = [field.name for field in dataclasses.fields(cls)]
  for option in options:
    if option not in fields:
      raise _unknown(f"option of the {kind} {name!r}", option, fields)
  return cls(**options)


def _unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
  near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  hint = f"did you mean {' or '.join(near)}?" if near else f"known: {[*known]}"
  return ValueError(f"there is no {kind} {name!r}; {hint}")
