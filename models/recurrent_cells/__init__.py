"""Recurrent cells by name: `cell` of the models that forecast.

A cell maps `[batch, time, any]` to `[batch, time, width]`, from the first to
the last, and goes on from a state, a dict of arrays float32 [batch, width].
What it makes of its inputs is one product before the scan; only what needs the
state is in it. States are float32 whatever the dtype of the products.
"""

from collections.abc import Callable

import flax.linen as nn

from models import registry
from models.recurrent_cells.gru import GRU
from models.recurrent_cells.highway import RHN
from models.recurrent_cells.lstm import LSTM

CELLS: dict[str, Callable[..., nn.Module]] = {
  "gru": GRU,
  "lstm": LSTM,
  "rhn": RHN,
}


def find(name: str) -> Callable[..., nn.Module]:
  """The class of a cell.

  Raises:
    ValueError: if there is no such cell.
  """
  if name not in CELLS:
    raise registry.unknown("cell", name, (*CELLS, "none"))
  return CELLS[name]


__all__ = ["CELLS", "GRU", "LSTM", "RHN", "find"]
