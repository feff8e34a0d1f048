"""Tables of a family: what was published beside what was measured here.

`docs/results/<family>.jsonl` has a line for each evaluation, `<family>.md` the
table that is made of it. A row that nobody measured has empty cells.
"""

import datetime
import json
from typing import Any, TextIO

import jax
from etils import epath

from tools import model_table, published

FOLDER = epath.Path(__file__).parent.parent / "docs" / "results"
_HEADER = (
  "model",
  "train data",
  "resolution",
  "parameters M",
  "multiply-adds G",
  "top-1 published",
  "top-1 measured",
  "difference",
  "hardware",
  "date",
  "source of the published",
)


def row_key(row: published.Row) -> dict[str, Any]:
  """What tells the rows of a family apart."""
  return {
    "name": row.published_name,
    "config": row.config,
    "resolution": row.resolution,
  }


def record(row: published.Row, result: dict[str, Any]) -> None:
  """Adds an evaluation of a row's model to the family's measurements.

  Args:
    row: of the published table.
    result: `weights`, `examples`, `top1` and `top5` of `eval.py`.
  """
  measured = row_key(row) | result
  measured |= {
    "hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "date": datetime.date.today().isoformat(),
  }
  FOLDER.mkdir(parents=True, exist_ok=True)
  path = FOLDER / f"{row.family}.jsonl"
  lines = path.read_text() if path.exists() else ""
  path.write_text(lines + json.dumps(measured) + "\n")


def measurements(family: str) -> list[dict[str, Any]]:
  """All evaluations of a family, the oldest first."""
  path = FOLDER / f"{family}.jsonl"
  lines = path.read_text().splitlines() if path.exists() else ()
  return [json.loads(line) for line in lines]


def write(family: str) -> epath.Path:
  """Writes `<family>.md` from the published rows and the measurements."""
  rows, measured = published.rows(family), measurements(family)
  FOLDER.mkdir(parents=True, exist_ok=True)
  path = FOLDER / f"{family}.md"
  with path.open("w") as file:
    _write_markdown(family, rows, measured, file)
  return path


def _write_markdown(
  family: str,
  rows: list[published.Row],
  measured: list[dict[str, Any]],
  file: TextIO,
) -> None:
  print(f"# {family}: published and measured\n", file=file)
  print(
    f"Made by `python -m tools.evaluate_family {family}`. Top-1 in percent on"
    "\nImageNet's validation split. Parameters and multiply-adds are counted"
    " from our\nmodels. Empty cells were not measured.\n",
    file=file,
  )
  print("| " + " | ".join(_HEADER) + " |", file=file)
  print("|---" * len(_HEADER) + "|", file=file)
  counted: dict[tuple[str, int], dict[str, Any]] = {}
  for row in rows:
    network = (row.model, row.resolution)
    if network not in counted:
      counted[network] = model_table.describe(*network)
    cells = _cells(row, counted[network], measured)
    print("| " + " | ".join(cells) + " |", file=file)


def _cells(
  row: published.Row,
  counted: dict[str, Any],
  measured: list[dict[str, Any]],
) -> list[str]:
  key = row_key(row).items()
  # The newest counts.
  found = next((m for m in measured[::-1] if key <= m.items()), None)
  top1 = None if found is None else 100 * found["top1"]
  difference = None if None in (top1, row.top1) else top1 - row.top1
  return [
    row.published_name,
    row.train_data,
    str(row.resolution),
    f"{counted['parameters'] / 1e6:.2f}",
    f"{counted['multiply-adds G']:.2f}",
    "" if row.top1 is None else f"{row.top1:g}",
    "" if top1 is None else f"{top1:.3f}",
    "" if difference is None else f"{difference:+.3f}",
    "" if found is None else found["hardware"],
    "" if found is None else found["date"],
    row.source,
  ]
