"""What moves, by name: `config.data.system`."""

from collections.abc import Mapping
from typing import Any

from input_pipeline import choices
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
  return choices.create("system", SYSTEMS, name, options)
