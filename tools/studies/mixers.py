"""Every mixer on common ground: the loss on text at equal steps.

No paper's claim: the rows of `tools.mixers_table`, whose measured columns this
gives, all trained as `configs.language` says for studies. Runs that other
studies have are taken from them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from configs import language
from tools import mixers_table, study


def rows(variant: str) -> Sequence[study.Row]:
  """The rows of the table."""
  return [
    study.Row(name, _config(fields, variant))
    for name, fields in mixers_table.ROWS.items()
  ]


def _config(
  fields: Mapping[str, Any], variant: str
) -> ml_collections.ConfigDict:
  config = language.get_config("study")
  if variant == "test":
    # One for all: compiling is all that a row costs, and `mixers_table` makes
    # a model of each.
    config = study.shrunk(config, depth=1)
  else:
    config.model.update(fields)
  return config


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """The loss of each mixer."""
  table = []
  for name in dict.fromkeys(line["row"] for line in lines):
    own = [line for line in lines if line["row"] == name]
    table.append(
      [
        name,
        f"{own[0]['parameters']:,}",
        study.spread([line["loss"] for line in own], 3),
        study.spread([line["bits_per_byte"] for line in own], 3),
      ]
    )
  header = ("mixer", "parameters", "loss", "bits per byte")
  return {"mixers": study.markdown(header, table)}
