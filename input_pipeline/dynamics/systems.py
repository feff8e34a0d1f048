"""What moves, by name: `config.data.system`."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from input_pipeline.dynamics.integrators import System
from input_pipeline.dynamics.kuramoto_sivashinsky import KuramotoSivashinsky
from input_pipeline.dynamics.lorenz96 import Lorenz96, Lorenz96Multiscale

# To add one, write its module and put it here.
SYSTEMS: dict[str, type[System]] = {
  "kuramoto_sivashinsky": KuramotoSivashinsky,
  "lorenz96": Lorenz96,
  "lorenz96_multiscale": Lorenz96Multiscale,
}


def create(name: str, options: Mapping[str, Any]) -> System:
  """The system of a name with some of its fields.

  Raises:
    ValueError: if there is no such system, it has no such field, or a value
      does not fit.
  """
  if name not in SYSTEMS:
    raise _unknown("system", name, SYSTEMS)
  cls = SYSTEMS[name]
  fields = [field.name for field in dataclasses.fields(cls)]
  for option in options:
    if option not in fields:
      raise _unknown(f"option of the system {name!r}", option, fields)
  return cls(**options)


def _unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
  near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  hint = f"did you mean {' or '.join(near)}?" if near else f"known: {[*known]}"
  return ValueError(f"there is no {kind} {name!r}; {hint}")
