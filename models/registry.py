"""Finding a model by its name."""

import dataclasses
import difflib
import fnmatch
import importlib
import numbers
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn

# The only list of families: modules with VARIANTS, {name: (class, {field:
# value})}, and KIND, what they are for: "image", "language", "generation",
# "diffusion", "detection", "pair", "autoencoder", "restoration", "potential",
# "forecasting" or "vision_language". Those of images have IMAGE_SIZES too,
# {name: side in pixels of the images that the variant was published for}; those
# that tensor parallelism knows have SHARDING_RULES.
FAMILIES = (
  "models.autoencoder",
  "models.diffusion_transformer",
  "models.dimr",
  "models.duoformer",
  "models.escaip",
  "models.flowformer",
  "models.forecasting",
  "models.halonet",
  "models.hat",
  "models.lina",
  "models.maxvit",
  "models.mobilenet",
  "models.mtair",
  "models.pair_attention",
  "models.patch_mixers",
  "models.perceptron",
  "models.point_detector",
  "models.probed",
  "models.resnet",
  "models.span",
  "models.transformer",
  "models.u_halonet",
  "models.vision_language",
)


def create(name: str, **overrides: Any) -> nn.Module:
  """Returns the model `name`, with some of its fields changed.

  Args:
    name: a name that `list_models()` gives, as "maxvit_tiny_224".
    **overrides: fields of the model and their values, as `num_classes=10`.

  Raises:
    ValueError: if there is no such model, or it has no such field, or a value
      is of another type than the field.
  """
  cls, hyperparameters = _variant(name)
  check_fields(cls, overrides, name)
  return cls(**{**hyperparameters, **overrides})


def build(cls: type[nn.Module], fields: Mapping[str, Any]) -> nn.Module:
  """Returns a model of a class, with fields that are checked as in `create`.

  Raises:
    ValueError: if it has no such field, or a value is of another type.
  """
  check_fields(cls, fields, cls.__name__)
  return cls(**fields)


def fields(name: str) -> dict[str, tuple[Any, Any]]:
  """Returns the fields of a model, each with its type and its value.

  Raises:
    ValueError: if there is no such model.
  """
  cls, hyperparameters = _variant(name)
  defaults = {f.name: f.default for f in dataclasses.fields(cls)}
  values = defaults | hyperparameters
  return {field: (hint, values[field]) for field, hint in _hints(cls).items()}


def image_size(name: str) -> int:
  """Returns the side in pixels of the images that a variant is for.

  Raises:
    ValueError: if there is no such model, or it takes no images.
  """
  if (found := kind(name)) != "image":
    raise ValueError(
      f"{name} is a model of {found} and has no image size; see "
      'models.list(kind="image")'
    )
  return _collect("IMAGE_SIZES")[name]


def sharding_rules(name: str) -> tuple[tuple[str, tuple], ...]:
  """Returns what splits a model's parameters, the SHARDING_RULES of its family.

  Pairs (pattern of a parameter's path, what splits each of its axes), as
  `training.placement` reads them; none for a family without.

  Raises:
    ValueError: if there is no such model.
  """
  _variant(name)
  (family,) = (f for f in _families() if name in f.VARIANTS)
  return getattr(family, "SHARDING_RULES", ())


def kind(name: str) -> str:
  """Returns what a model is for, the KIND of its family, as "image".

  Raises:
    ValueError: if there is no such model.
  """
  kinds = _kinds()
  if name not in kinds:
    raise unknown("model", name, kinds)
  return kinds[name]


def list_models(pattern: str = "*", kind: str | None = None) -> list[str]:
  """Returns the names of the models that match a shell pattern, sorted.

  Args:
    pattern: as "maxvit_tiny_*".
    kind: only models of this kind; of all if None.

  Raises:
    ValueError: if no model is of that kind.
  """
  kinds = _kinds()
  if kind is not None and kind not in kinds.values():
    raise unknown("kind of model", kind, set(kinds.values()))
  names = fnmatch.filter(kinds, pattern)
  return sorted(name for name in names if kind in (None, kinds[name]))


def unknown(kind: str, name: Any, known: Iterable[str]) -> ValueError:
  """Makes the error for a name that is not known, with the nearest that are."""
  known = sorted(known)
  near = nearest(str(name), known)
  hint = f"did you mean {' or '.join(near)}?" if near else f"known: {known}"
  return ValueError(f"there is no {kind} {name!r}; {hint}")


def nearest(name: str, known: Iterable[str]) -> list[str]:
  """Those names that may have been meant, the most alike first."""
  return difflib.get_close_matches(name, known, n=5, cutoff=0.5)


def _variant(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
  variants = _variants()
  if name not in variants:
    raise unknown("model", name, variants)
  return variants[name]


def check_fields(
  cls: type[nn.Module], fields: Mapping[str, Any], name: str
) -> None:
  """Raises ValueError unless a class has the fields, of the values' types.

  Args:
    cls: of a model, or of a part of one.
    fields: and their values.
    name: for errors.
  """
  hints = _hints(cls)
  for field, value in fields.items():
    if field not in hints:
      raise unknown(f"field of {cls.__name__}", field, hints)
    if not _is_of(hints[field], value):
      raise ValueError(
        f"{field}={value!r} of {name} must be {_describe(hints[field])}"
      )


def _hints(cls: type[nn.Module]) -> dict[str, Any]:
  """The types of a model's own fields, without those that Flax adds."""
  hints = typing.get_type_hints(cls)
  return {
    field.name: hints[field.name]
    for field in dataclasses.fields(cls)
    if field.name not in ("parent", "name")
  }


def _is_of(hint: Any, value: Any) -> bool:
  """Whether a value is of a type of the kinds that fields have."""
  if hint is Any:
    return True
  if isinstance(hint, types.UnionType):
    return any(_is_of(option, value) for option in typing.get_args(hint))
  if typing.get_origin(hint) is tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
      return False
    inner = typing.get_args(hint)
    if inner[-1] is Ellipsis:
      inner = inner[:1] * len(value)
    return len(inner) == len(value) and all(map(_is_of, inner, value))
  if hint in (int, float):
    number = numbers.Integral if hint is int else numbers.Real
    return isinstance(value, number) and not isinstance(value, bool)
  kind = typing.get_origin(hint) or hint
  return not isinstance(kind, type) or isinstance(value, kind)


def _describe(hint: Any) -> str:
  return str(hint) if typing.get_args(hint) else hint.__name__


def _variants() -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
  return _collect("VARIANTS")


def _kinds() -> dict[str, str]:
  """The kind of each model."""
  return {
    name: family.KIND for family in _families() for name in family.VARIANTS
  }


def _collect(attribute: str) -> dict[str, Any]:
  """Joins the dictionaries of this name of all families that have one."""
  joined = {}
  for family in _families():
    joined |= getattr(family, attribute, {})
  return joined


def _families() -> list[types.ModuleType]:
  return [importlib.import_module(family) for family in FAMILIES]
