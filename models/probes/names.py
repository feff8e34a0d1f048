"""The one list of probes, and how a name is read."""

from collections.abc import Mapping
from typing import Any

from models import registry
from models.probes import efficient, maps, queries
from models.probes.parts import Pooling

LINEAR = ("cls", "gap")
_ALL = "_all"
# Name: (class, fields).
POOLINGS: dict[str, tuple[type[Pooling], dict[str, Any]]] = {
  "abmilp": (maps.AbmilpPool, {}),
  "aim": (queries.AimPool, {}),
  "cae": (queries.CaePool, {}),
  "cait": (queries.CaitPool, {}),
  "cbam": (maps.CbamPool, {}),
  "clip": (queries.ClipPool, {}),
  "coca": (queries.CocaPool, {}),
  "dinovit": (maps.DinoBlockPool, {}),
  "dolg": (maps.DolgPool, {}),
  "ep": (efficient.EfficientProbing, {}),
  "esimpool": (queries.SimPool, {"linear": False, "heads": 12}),
  "jepa": (queries.JepaPool, {}),
  "siglip": (queries.SiglipPool, {}),
  "simpool": (queries.SimPool, {}),
}


def names() -> list[str]:
  """Returns all names, sorted; with the class token only where it can be."""
  with_token = [name + _ALL for name in POOLINGS if name != "cbam"]
  return sorted([*LINEAR, *POOLINGS, *with_token])


def is_linear(probe: str) -> bool:
  """Says whether a probe is one of LINEAR.

  Raises:
    ValueError: if there is no such probe.
  """
  # What no pooling can be, its module refuses and says why.
  if probe not in LINEAR and probe.removesuffix(_ALL) not in POOLINGS:
    raise registry.unknown("probe", probe, names())
  return probe in LINEAR


def takes_class_token(probe: str) -> bool:
  """Says whether a probe reads the class token."""
  return probe == "cls" or probe.endswith(_ALL)


def create(probe: str, options: Mapping[str, Any], /, **fields: Any) -> Pooling:
  """Makes the pooling of a probe, which is none of LINEAR.

  Args:
    probe: as `names` gives it.
    options: fields of the pooling, as `queries` of "ep".
    **fields: dtypes and implementation.

  Raises:
    ValueError: if there is no such pooling, or it has no such option.
  """
  if is_linear(probe):
    raise ValueError(f"probe is {probe!r}, which pools nothing")
  cls, defaults = POOLINGS[probe.removesuffix(_ALL)]
  return registry.build(cls, {**defaults, **options, **fields})
