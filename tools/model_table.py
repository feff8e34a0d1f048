"""Prints what models are and what was published of them.

  python -m tools.model_table 'maxvit*'
  python -m tools.model_table 'resnetrs_50*' --format=csv

Parameters are counted with 1000 classes and without running statistics.
Multiply-adds and activations (elements that convolutions and matrix products
write) are counted for one image from the jaxpr, attention included. The columns
called published are from `tools/published/`.
"""

import argparse
import csv
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import jax
import jax.numpy as jnp

import models
from tools import published, work

COLUMNS = (
  "model",
  "size",
  "parameters",
  "published M",
  "multiply-adds G",
  "published G",
  "activations M",
  "published top-1",
)


def describe(name: str, size: int | None = None) -> dict[str, Any]:
  """Counts one model, by default at the size that it is for."""
  model = models.create(name)
  for field in ("attention_implementation", "feed_forward_implementation"):
    if hasattr(model, field):
      # Of a kernel nothing could be counted.
      model = model.clone(**{field: "xla"})
  size = size or models.image_size(name)
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  done = work.count_work(model.apply, variables, image)
  leaves = jax.tree.leaves(variables["params"])
  return {
    "model": name,
    "size": size,
    "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
    "multiply-adds G": done.multiply_adds / 1e9,
    "activations M": done.activations / 1e6,
  }


def with_published(row: dict[str, Any]) -> dict[str, Any]:
  """Adds what was published of the model at this size; first sources first."""
  lines = [
    line
    for family in published.families()
    for line in published.rows(family)
    if (line.model, line.resolution) == (row["model"], row["size"])
  ]

  def values(field: str) -> str:
    found = [getattr(line, field) for line in lines]
    texts = [f"{value:g}" for value in found if value is not None]
    return ", ".join(dict.fromkeys(texts))

  return row | {
    "published M": values("parameters_M"),
    "published G": values("multiply_adds_G"),
    "published top-1": values("top1"),
  }


def write_markdown(rows: Iterable[dict[str, Any]], file: TextIO) -> None:
  """Writes a table for people."""
  print("| " + " | ".join(COLUMNS) + " |", file=file)
  print("|---" * len(COLUMNS) + "|", file=file)
  for row in rows:
    cells = (_cell(row[column]) for column in COLUMNS)
    print("| " + " | ".join(cells) + " |", file=file, flush=True)


def write_csv(rows: Iterable[dict[str, Any]], file: TextIO) -> None:
  """Writes a table for programs, with all digits."""
  writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
  writer.writeheader()
  for row in rows:
    writer.writerow(row)


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.2f}"
  return f"{value:,}" if isinstance(value, int) else value


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("patterns", nargs="*", default=["*"], help="of names")
  parser.add_argument("--format", choices=["markdown", "csv"])
  args = parser.parse_args(argv)
  matches = (models.list(p, kind="image") for p in args.patterns)
  names = sorted(set().union(*matches))
  if not names:
    known = models.list(kind="image")
    parser.error(f"no model matches {args.patterns}; there are {known}")
  rows = (with_published(describe(name)) for name in names)
  write = write_csv if args.format == "csv" else write_markdown
  write(rows, sys.stdout)


if __name__ == "__main__":
  main()
