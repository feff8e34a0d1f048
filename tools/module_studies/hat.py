"""HAT's parts: a small network on photographs, and what each part brings."""

from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from configs import hat
from tools import super_resolution_rows

TITLE = "HAT (2205.04437)"
GROUP = "restoration"
TEXT = """\
As SPAN's study, with a group of two blocks of 24 channels and windows of 8
pixels, whose output is added to bicubic interpolation: ours, as so few steps do
not get there from nothing. Controls are the same network whose overlapping
windows have no halo, so that they are windows like the others, and one whose
convolutional branches do not count (`conv_scale` is 0). The paper says that
both help, overlapping windows since they join what windows cut.
"""
COLUMNS = super_resolution_rows.COLUMNS
Row = tuple[str, dict[str, Any]]


def rows(variant: str) -> list[Row]:
  """The names of rows and the fields of their models."""
  found = [
    (super_resolution_rows.BICUBIC, {}),
    ("no halo", {"halo_size": 0}),
    ("no convolutions beside attention", {"conv_scale": 0.0}),
    ("HAT", {}),
  ]
  return found if variant == "full" else found[::3]


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
  config = hat.get_config("photographs_x2" if variant == "full" else "test")
  config.model.update(dict(options))
  config.seed = seed
  return config
