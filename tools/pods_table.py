"""Compiles published configs for TPU pods: the table of docs/pods.md.

  nice python -m tools.pods_table [--only=maxvit] [--topologies=v5e-256,v4-32]
  python -m tools.pods_table --nocompile --report=docs/pods.md

Each row is a process of `tools.compile_only`, of minutes, that adds a line to
--lines; what has a line is not compiled again. Batches are the config's, and
whatever does not fit is not looked after: `tools.compile_only` does that.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# This process only waits for others.
os.environ["JAX_PLATFORMS"] = "cpu"

from etils import epath

from tools import study

_ROOT = epath.Path(__file__).parents[1]
LINES = _ROOT / "docs" / "results" / "pods.jsonl"
MARK = "pods"
TOPOLOGIES = ("v5e-256", "v5e-64", "v4-32", "v5p-64", "v6e-256")


class Entry(NamedTuple):
  """A config of the table.

  Attributes:
    config: family and variant, as in "maxvit:tiny_224".
    options: of `tools.compile_only` beside it.
  """

  config: str
  options: tuple[str, ...] = ()


# The most wanted and the cheapest first.
ENTRIES = (
  Entry("language:gpt2"),
  Entry("language:1b"),
  Entry("maxvit:tiny_224"),
  Entry("halonet:h1"),
  Entry("resnet_rs:50_160"),
  Entry("maxvit:base_224"),
  Entry("halonet:h0"),
  Entry("halonet:h4"),
  Entry("lina:imagenet_256"),
  Entry("maxvit:small_224"),
  Entry("maxvit:large_224"),
  Entry("halonet:h2"),
  Entry("halonet:h3"),
  Entry("halonet:h5"),
  Entry("halonet:h6"),
  Entry("halonet:h7"),
  Entry("maxvit:xlarge_224_in21k"),
  Entry("resnet_rs:152_256"),
  Entry("resnet_rs:270_256"),
  Entry("resnet_rs:420_320"),
)
_HEADER = (
  *("config", "pod", "rows", "fits", "GiB a chip", "of", "TFLOP", "GB"),
  *("ms", "of peak", "kernels at least", "collectives", "CPU s"),
)


def main(argv: Sequence[str] | None = None) -> None:
  """Compiles what has no line yet, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--lines", default=str(LINES), help="Of results, JSON.")
  parser.add_argument("--report", default="", help="Where to put the table.")
  parser.add_argument("--only", default="", help="Configs with this in them.")
  parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
  parser.add_argument("--nocompile", action="store_true")
  args = parser.parse_args(argv)
  topologies = args.topologies.split(",")
  lines = study.Results(epath.Path(args.lines), "pods")
  if not args.nocompile:
    for topology in topologies:
      for entry in ENTRIES:
        if args.only in entry.config:
          _add_line(lines, entry, topology)
  made = table(lines.rows)
  if args.report:
    study.write_tables(epath.Path(args.report), {MARK: made})
  else:
    print(made)


def _add_line(lines: study.Results, entry: Entry, topology: str) -> None:
  """Compiles what has no line; what fails is said, and not in the way."""
  key = {"config": entry.config, "pod": topology}
  try:
    lines.find_or_make(key, lambda: compiled(entry, topology))
  except ValueError as error:
    print(error, file=sys.stderr, flush=True)


def compiled(entry: Entry, topology: str) -> dict[str, Any]:
  """Returns what the compiler says of a training step.

  Raises:
    ValueError: if it fails for another reason than memory.
  """
  family, variant = entry.config.split(":")
  command = [
    *(sys.executable, "-m", "tools.compile_only", "--json", "--nofit"),
    f"--config={_ROOT}/configs/{family}.py:{variant}",
    f"--topology={topology}",
    *entry.options,
  ]
  done = subprocess.run(
    command, cwd=_ROOT, capture_output=True, text=True, check=False
  )
  if done.returncode:
    raise ValueError(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def table(lines: Sequence[Mapping[str, Any]]) -> str:
  """Returns a row for each config and pod, and names what has none yet."""
  found = {(line["config"], line["pod"]): line for line in lines}
  rows = []
  missing: dict[str, list[str]] = {}
  for entry in ENTRIES:
    for topology in TOPOLOGIES:
      if line := found.get((entry.config, topology)):
        rows.append((entry.config, topology, *row(line)))
      else:
        missing.setdefault(topology, []).append(entry.config)
  texts = [
    f"Not compiled for {topology}: {', '.join(missing[topology])}."
    for topology in TOPOLOGIES
    if topology in missing
  ]
  return "\n\n".join((study.markdown(_HEADER, rows), *texts))


def row(line: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the cells of a line, from the rows of the batch on."""
  gib = lambda size: f"{size / 2**30:.2f}"
  available = gib(line["available_bytes"])
  seconds = f"{line['cpu_seconds']:.0f}"
  if not line["fits"]:
    needed = gib(line["bytes_per_chip"])
    return f"{line['rows']}", "no", needed, available, *[""] * 6, seconds
  unknown = line["estimated_seconds"] is None
  moved = line["collectives"]
  if moved is not None:
    moved = sum(each["bytes"] for each in moved if not each["conditional"])
  return (
    f"{line['rows']}",
    "yes",
    gib(line["peak_bytes"]),
    available,
    f"{line['flops'] / 1e12:.3g}",
    f"{line['bytes'] / 1e9:.3g}",
    "unknown" if unknown else f"{line['estimated_seconds'] * 1e3:.3g}",
    "unknown" if unknown else f"{line['utilisation']:.0%}",
    "unknown" if unknown else f"{line['kernel_share']:.1%}",
    "unknown" if moved is None else f"{moved / 1e6:,.0f} MB",
    seconds,
  )


if __name__ == "__main__":
  main()
