r"""Puts what a family's published models reach here into its table.

  python -m tools.evaluate_family maxvit --weights=timm
  python -m tools.evaluate_family maxvit --weights=runs

evaluates every published model that has weights, timm's or those in a folder
(`<folder>/<variant>` is a run, `<folder>/<variant>.safetensors` a file), notes
the results and writes `docs/results/<family>.md`. Without `--weights` it writes
the table from what was noted before. ImageNet is looked for in $TFDS_DATA_DIR.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

import storage
from eval import evaluate, summarize
from tools import published, results_table
from training import checkpoints, cli, console


def evaluate_rows(family: str, source: str) -> None:
  """Evaluates each published model of a family that `source` has weights of.

  Args:
    family: a table of `tools.published`, and a file of `configs`.
    source: "timm", or a folder.

  Raises:
    ValueError: if there are no weights at all.
  """
  found = [
    (row, weights)
    for row in published.rows(family)
    if row.config and (weights := _find_weights(row, source))
  ]
  if not found:
    raise ValueError(
      f"weights={source!r} has weights for no row of {family}; it must be "
      "'timm', if timm has published any, or a folder with "
      "<variant> (the workdir of a run) or <variant>.safetensors."
    )
  configs = importlib.import_module(f"configs.{family}")
  for row, weights in found:
    config = configs.get_config(row.config)
    config.data.image_size = row.resolution
    result = summarize(config, evaluate(config, weights))
    console.say(f"{row.published_name} at {row.resolution}: {result}")
    results_table.record(row, {"weights": weights, **result})


def _find_weights(row: published.Row, source: str) -> str:
  if source == "timm":
    return row.weights
  folder = storage.path(source) / row.config
  if folder.is_dir():
    return str(folder)
  file = folder.with_name(f"{row.config}.safetensors")
  return str(file) if file.exists() else ""


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line, evaluates and writes the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("family", choices=published.families())
  parser.add_argument("--weights", help="'timm', or a folder; see above")
  args = parser.parse_args(argv)
  try:
    if args.weights:
      evaluate_rows(args.family, args.weights)
    console.say(f"wrote {results_table.write(args.family)}")
  except (*cli.USER_ERRORS, checkpoints.CheckpointError) as error:
    sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
  main()
