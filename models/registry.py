"""Finding a model by its name."""

import dataclasses
import difflib
import fnmatch
import importlib
from collections.abc import Iterable
from typing import Any

import flax.linen as nn

# Modules with VARIANTS: {name: (class, {field: value})} and IMAGE_SIZES: {name:
# side in pixels of the images that the variant was published for}.
FAMILIES = (
  "models.duoformer",
  "models.halonet",
  "models.maxvit",
  "models.resnet",
  "models.u_halonet",
)


def create(name: str, **overrides: Any) -> nn.Module:
  """Returns the model `name`, with some of its fields changed.

  Args:
    name: a name that `list_models()` gives, as "maxvit_tiny_224".
    **overrides: fields of the model and their values, as `num_classes=10`.

  Raises:
    ValueError: if there is no such model or it has no such field.
  """
  variants = _variants()
  if name not in variants:
    raise unknown("model", name, variants)
  cls, hyperparameters = variants[name]
  fields = [f.name for f in dataclasses.fields(cls) if f.name != "parent"]
  for override in overrides:
    if override not in fields:
      raise unknown(f"field of {cls.__name__}", override, fields)
  return cls(**{**hyperparameters, **overrides})


def image_size(name: str) -> int:
  """Returns the side in pixels of the images that a variant is for.

  Raises:
    ValueError: if there is no such model.
  """
  sizes = _collect("IMAGE_SIZES")
  if name not in sizes:
    raise unknown("model", name, sizes)
  return sizes[name]


def list_models(pattern: str = "*") -> list[str]:
  """Returns the names of the models that match a shell pattern, sorted."""
  return sorted(fnmatch.filter(_variants(), pattern))


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
  """Makes the error for a name that is not known, with the nearest that are."""
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
  hint = f"did you mean {' or '.join(near)}?" if near else f"known: {known}"
  return ValueError(f"there is no {kind} {name!r}; {hint}")


def _variants() -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
  return _collect("VARIANTS")


def _collect(attribute: str) -> dict[str, Any]:
  """Joins the dictionaries of this name of all families."""
  joined = {}
  for family in FAMILIES:
    joined |= getattr(importlib.import_module(family), attribute)
  return joined
