"""SPAN's gates: a small network on photographs, with them and without."""

from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from configs import span
from tools import super_resolution_rows

TITLE = "SPAN (2311.12770)"
GROUP = "restoration"
TEXT = """\
The photographs of scikit-learn and scikit-image made twice as large: networks
of 16 channels, trained alike on patches of 24 pixels that were made of twice
that, and measured on three photographs that were held out. The first row is
bicubic interpolation. The second control is the same network whose blocks are
plain residual ones: the paper says that gating what a block makes by an odd
function of it helps at no parameters and hardly any time. Parameters are those
of the training; folded, both networks have 47,308. "gain" is the PSNR on Y
over bicubic interpolation's.
"""
COLUMNS = super_resolution_rows.COLUMNS
Row = tuple[str, dict[str, Any]]


def rows(variant: str) -> list[Row]:
  """The names of rows and the fields of their models."""
  found = [
    (super_resolution_rows.BICUBIC, {}),
    ("no gates", {"gated": False}),
    ("SPAN", {}),
  ]
  return found if variant == "full" else found[::2]


def measure(
  folder: epath.Path,
  row: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Trains a network, if the row has one, and measures what it restores.

  Args:
    folder: of what rows share: the small images of a test.
    row: its name.
    options: fields of the model.
    seed: of the training.
    variant: "full" or "test".

  Returns:
    What COLUMNS names.
  """
  config = make_config(options, seed, variant)
  return super_resolution_rows.measured(config, folder, row, variant)


def make_config(
  options: Mapping[str, Any], seed: int, variant: str
) -> ml_collections.ConfigDict:
  """The config of a run, the same for all rows but for the model."""
  config = span.get_config("photographs_x2" if variant == "full" else "test")
  if variant == "full":
    config.train_for = "2500 steps"
  config.model.update(dict(options))
  config.seed = seed
  return config
