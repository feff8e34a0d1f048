"""Models in Flax Linen: `create` makes one by name, `list` gives the names.

`models.pretrained`, `models.decoding` and `models.taps` are imported when they
are first used.
"""

import importlib
from typing import Any

from models.registry import (
  create,
  fields,
  image_size,
  kind,
  sharding_rules,
)
from models.registry import list_models as list

_LAZY = ("decoding", "pretrained", "taps")

__all__ = [
  "create",
  "fields",
  "image_size",
  "kind",
  "list",
  "sharding_rules",
  *_LAZY,
]


def __getattr__(name: str) -> Any:
  if name in _LAZY:
    return importlib.import_module(f"models.{name}")
  raise AttributeError(f"module 'models' has no attribute {name!r}")
