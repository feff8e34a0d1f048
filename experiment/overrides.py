"""What a command line may set of a config beside the fields that it has."""

import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

import models
import tasks


def optional_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns all fields of the config's model, for `cli.define_config_flag`.

  Raises:
    ValueError: if there is no such task or model.
  """
  # Not what the data and the rest of the config give.
  given = tasks.find(config.task).given
  return {
    f"model.{name}": _settable(hint, value)
    for name, (hint, value) in models.fields(config.model.name).items()
    if name not in given
  }


def _settable(hint: Any, value: Any) -> Any:
  """A value whose type says how text is read; None if text cannot give it."""
  if value is None:
    # The type in "int | None", of a tuple without what is in it.
    kind = typing.get_args(hint)[0]
    return config_dict.placeholder(typing.get_origin(kind) or kind)
  if isinstance(value, Mapping):
    return ml_collections.ConfigDict(value)
  if hint is float:
    return float(value)
  return value if isinstance(value, bool | int | float | str | tuple) else None
