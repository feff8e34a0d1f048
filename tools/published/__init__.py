"""What others published of our models: facts from tables, none measured here.

A CSV file for each family. The column `model` is the name of our model of the
same network, `config` the variant of `configs/<family>.py` that trains it,
empty where its data are not public, and `weights` what `eval.py` can load.
Where a source counts two FLOPs for a multiply-add they are halved.
"""

import csv
import dataclasses
import pathlib

_FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a published table; what it does not say is None or empty.

  Attributes:
    family: whose table it is in.
    published_name: what the source calls the model.
    model: our name.
    config: variant of the family's config file.
    weights: of this row, for `eval.py --weights`.
    train_data: data sets in order of training, as "in21k_ft_in1k".
    resolution: side of the images in the evaluation, in pixels.
    parameters_M: millions of parameters.
    multiply_adds_G: thousand millions of multiply-adds for an image.
    top1: accuracy on ImageNet's validation split in percent.
    source: where it stands.
  """

  family: str
  published_name: str
  model: str
  config: str
  weights: str
  train_data: str
  resolution: int
  parameters_M: float | None
  multiply_adds_G: float | None
  top1: float | None
  source: str


def families() -> list[str]:
  """The families that have a table."""
  return sorted(path.stem for path in _FOLDER.glob("*.csv"))


def rows(family: str) -> list[Row]:
  """Returns a family's published table.

  Raises:
    ValueError: if there is none.
  """
  if family not in families():
    raise ValueError(
      f"family is {family!r}; there are published tables of {families()}"
    )
  with (_FOLDER / f"{family}.csv").open(newline="") as file:
    return [_row(family, line) for line in csv.DictReader(file)]


def _row(family: str, line: dict[str, str]) -> Row:
  numbers = {"parameters_M", "multiply_adds_G", "top1"}
  values = {
    name: (float(value) if value else None) if name in numbers else value
    for name, value in line.items()
  }
  values["resolution"] = int(line["resolution"])
  return Row(family=family, **values)
