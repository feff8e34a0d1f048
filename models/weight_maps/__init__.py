"""How other codebases name and lay out the weights of our models.

A map is a function from the path of one of our variables to the name and layout
of its counterpart: going through our own tree, rather than through a file, is
what makes missing and surplus tensors plain to see.
"""

import importlib
import pkgutil
import types
from collections.abc import Iterable, Mapping

import flax.linen as nn
import numpy as np

from models.weight_maps.layouts import WeightMap


def of(model: nn.Module, names: Iterable[str] = ()) -> WeightMap:
  """Returns the map for a model: that of the module named as its family's.

  Args:
    model: of any family that has a map.
    names: of a file's tensors, for families whose files have them in more ways
      than one (`recognise` in the family's module).

  Raises:
    ValueError: if there is none for its family.
  """
  module = _of_family(model)
  if names and hasattr(module, "recognise"):
    return module.weight_map(model, module.recognise(names))
  return module.weight_map(model)


def normalised(
  model: nn.Module, tensors: Mapping[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
  """Returns the tensors of a file as the map for the model names them.

  That is what they are, but where a family's files hold what has to be computed
  with or left out (`normalise` in the family's module).

  Raises:
    ValueError: if the file is of a form that the model has not.
  """
  normalise = getattr(_of_family(model), "normalise", None)
  return normalise(dict(tensors), model) if normalise else tensors


def constants(model: nn.Module) -> dict[str, np.ndarray]:
  """Returns {name: tensor} of what files may have and the model computes.

  A file that has one has to have these values.
  """
  return getattr(_of_family(model), "constants", lambda model: {})(model)


def part(model: nn.Module, name: str) -> nn.Module:
  """Returns the submodule `name` of a model, as a model of its own.

  Raises:
    ValueError: if there is none.
  """
  found = getattr(model.bind({}), name, None)
  if not isinstance(found, nn.Module):
    raise ValueError(
      f"part is {name!r}; {type(model).__name__} has no such submodule"
    )
  return found.unbind()[0]


def _of_family(model: nn.Module) -> types.ModuleType:
  """Returns the module with the map of a model's family."""
  family = type(model).__module__.rpartition(".")[2]
  known = sorted(module.name for module in pkgutil.iter_modules(__path__))
  if family not in known:
    raise ValueError(
      f"model is a {type(model).__name__}, and there is no map of weights for "
      f"{family}; there are {known}"
    )
  return importlib.import_module(f"{__name__}.{family}")
