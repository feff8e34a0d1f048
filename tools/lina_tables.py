"""The rows of LINA's study, and the tables of what was measured of them."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

from tools import study


@dataclasses.dataclass(frozen=True)
class Row:
  """A model of the study, that is trained with several seeds.

  Attributes:
    table: "main", or "ablations".
    name: for people.
    fields: of `models.lina` that differ from LINA's.
    share: the run has the config's steps divided by this.
    published: FID of arXiv 2601.22630's logs for the same layers on ImageNet.
  """

  table: str
  name: str
  fields: Mapping[str, Any]
  share: int = 1
  published: str = ""

  @property
  def slug(self) -> str:
    """Of the folder of a run."""
    words = self.name.lower().replace(",", "").split()
    return "_".join([self.table, *words])


_SOFTMAX = types.MappingProxyType(
  {"attention": "softmax", "gate": "none", "convolution": False}
)


def _ablation(name: str, published: str = "", **fields: Any) -> Row:
  return Row("ablations", name, fields, share=3, published=published)


ROWS = (
  Row("main", "LINA", {}),
  Row("main", "softmax", _SOFTMAX),
  _ablation("LINA"),
  _ablation("subtraction", normalizer="subtraction"),
  _ablation("no gate", "9.11", gate="none"),
  _ablation("no convolution", convolution=False),
  _ablation("softmax", **_SOFTMAX),
  # The control: what is left of the difference when both have a convolution.
  _ablation("softmax, convolution", attention="softmax", gate="none"),
)
# Of each figure its heading, a factor, and digits after the point.
_FIGURES = (
  ("class_accuracy", "class accuracy %", 100, 1),
  ("frechet_distance", "Frechet distance", 1, 2),
  ("inception_score", "Inception Score", 1, 2),
  ("precision", "precision %", 100, 1),
  ("recall", "recall %", 100, 1),
)
_MADE_WITH = ("averaged", "guidance", "steps", "flow_steps", "samples")
_HEADER = (
  "model",
  "train steps",
  "seeds",
  "weights",
  "guidance",
  "AR steps",
  "flow steps",
  "samples",
  *(heading for _, heading, _, _ in _FIGURES),
)


_COPIES_HEADER = (
  "model",
  "seeds",
  "nearest training image, median",
  "of held-out images",
  "nearer than 99 % of these, %",
)


def tables(measured: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """The tables in Markdown, by name: main, copies, ablations, cost.

  Args:
    measured: lines of results.
  """
  real = [line for line in measured if line["what"] == "real"]
  main = [_real_cells(line) for line in real] + _cells("main", measured)
  ablations = _cells("ablations", measured)
  published = {row.name: row.published for row in ROWS}
  for cells in ablations:
    # Published is guidance 1.
    same = cells[3:5] == ["averaged", "1"]
    cells.append(published[cells[0]] if same else "")
  return {
    "main": study.markdown(_HEADER, main),
    "copies": study.markdown(_COPIES_HEADER, _copies(measured)),
    "ablations": study.markdown((*_HEADER, "FID published"), ablations),
    "cost": study.markdown(
      (
        *("table", "model", "parameters", "train steps"),
        *("CPU s of a run", "CPU min of all runs and samples"),
      ),
      _cost(measured),
    ),
  }


def _cells(
  table: str, measured: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
  """A row of cells for each model and each way to make samples of it."""
  made = []
  for row in ROWS:
    if row.table != table:
      continue
    steps = {line["train_steps"] for line in _of(row, measured, "run")}
    lines = _of(row, measured, "samples")
    ways = dict.fromkeys(tuple(line[n] for n in _MADE_WITH) for line in lines)
    for way in ways:
      seeds = [
        line for line in lines if tuple(line[n] for n in _MADE_WITH) == way
      ]
      averaged, guidance, *counts = way
      made.append(
        [
          row.name,
          ", ".join(map(str, sorted(steps))),
          ", ".join(str(line["seed"]) for line in seeds),
          "averaged" if averaged else "raw",
          f"{guidance:g}",
          *map(str, counts),
          *_figures(seeds),
        ]
      )
  return made


def _copies(measured: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  made = []
  for row in ROWS:
    if lines := _of(row, measured, "copies"):
      values = lambda name, lines=lines: [line[name] for line in lines]
      made.append(
        [
          row.name,
          ", ".join(map(str, values("seed"))),
          study.spread(values("nearest_median"), 1),
          f"{lines[0]['held_out_nearest_median']:.1f}",
          study.spread([100 * x for x in values("nearer_than_held_out")], 1),
        ]
      )
  return made


def _real_cells(line: Mapping[str, Any]) -> list[str]:
  made_with = ["", "", "", "", "", "", str(line["samples"])]
  return ["real training images", *made_with, *_figures([line])]


def _of(
  row: Row, measured: Sequence[Mapping[str, Any]], what: str
) -> list[Mapping[str, Any]]:
  key = {"what": what, "table": row.table, "row": row.name}
  return [line for line in measured if key.items() <= line.items()]


def _figures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
  return [
    study.spread([factor * line[name] for line in lines], digits)
    if all(name in line for line in lines)
    else ""
    for name, _, factor, digits in _FIGURES
  ]


def _cost(measured: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  made = []
  seconds = lambda lines: [line["cpu_seconds"] for line in lines]
  for table in dict.fromkeys(row.table for row in ROWS):
    total = 0.0
    for row in (row for row in ROWS if row.table == table):
      runs, samples = (_of(row, measured, what) for what in ("run", "samples"))
      if not runs:
        continue
      spent = sum(seconds(runs)) + sum(seconds(samples))
      total += spent
      sizes = [f"{runs[0]['parameters']:,}", str(runs[0]["train_steps"])]
      per_run = study.spread(seconds(runs), 0)
      made.append([table, row.name, *sizes, per_run, f"{spent / 60:.1f}"])
    made.append([table, "all", "", "", "", f"{total / 60:.1f}"])
  return made
