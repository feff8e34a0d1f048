"""The command line of studies: which, where, how often, and what failed."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
from absl import logging

import storage
from training import checkpoints, cli, host_memory, metrics, reporting

SEEDS = (0, 1, 2)
VARIANTS = ("full", "test")
# What a row may fail of, and others go on.
ERRORS = (
  *cli.USER_ERRORS,
  checkpoints.CheckpointError,
  metrics.MetricsError,
  reporting.NonFiniteError,
)


def main(
  description: str,
  names: Sequence[str],
  run: Callable[..., list[str]],
  argv: Sequence[str] | None = None,
  folders: Mapping[str, str] | None = None,
) -> None:
  """Reads the command line, and does what is left to do.

  Args:
    description: of the program.
    names: of the studies there are.
    run: takes the folder `out`, names of studies, and variant, seeds, report
      and `folders` by name; returns a sentence on each row that failed.
    argv: the command line.
    folders: further options that are paths or None, with what they are.
  """
  folders = {} if folders is None else folders
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--out", required=True, help="folder of the results")
  parser.add_argument("--report", help="Markdown with marks for tables")
  parser.add_argument("--studies", nargs="+", default=names, metavar="NAME")
  parser.add_argument("--variant", default="full", choices=VARIANTS)
  parser.add_argument("--seeds", type=int, nargs="+")
  for name, what in folders.items():
    parser.add_argument(f"--{name}", help=what)
  args = parser.parse_args(argv)
  out = storage.path(args.out)
  given = {name: getattr(args, name) for name in ("report", *folders)}
  # Without, those that `run` takes.
  seeds = {"seeds": args.seeds} if args.seeds else {}
  try:
    out.mkdir(parents=True, exist_ok=True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
      # The seeds of a row are one program.
      jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    failures = run(
      out,
      args.studies,
      variant=args.variant,
      **seeds,
      **{name: path and storage.path(path) for name, path in given.items()},
    )
  except ERRORS as error:
    sys.exit(f"{type(error).__name__}: {error}")
  if failures:
    sys.exit("\n".join(["These runs failed:", *failures]))


def quiet() -> None:
  """Prepares a process of many runs."""
  # Orbax warns of options that are given on purpose.
  logging.set_verbosity(logging.ERROR)
  host_memory.keep_freed_memory()
