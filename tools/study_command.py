"""Programs of studies: which, where, how often, what failed, and the tables.

A package of studies has a module for each, with `rows(variant)`, and maybe
SEEDS and `pictures(lines)`, files beside its page by name. A program says who
does them, a `Study`, and is a `Command`.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

import storage
from models import registry
from tools import study
from training import (
  checkpoints,
  cli,
  console,
  host_memory,
  metrics,
  reporting,
)

SEEDS = (0, 1, 2)
VARIANTS = ("full", "test")
COST = "cost"
# What a row may fail of, and others go on.
ERRORS = (
  *cli.USER_ERRORS,
  checkpoints.CheckpointError,
  metrics.MetricsError,
  reporting.NonFiniteError,
)


class Study:
  """Does what is not done of studies; a subclass says how a row is done."""

  def __init__(self, results: study.Results, variant: str):
    """Makes it.

    Args:
      results: what is done.
      variant: of `VARIANTS`.
    """
    self._results = results
    self._variant = variant

  def rows(self, module: Any) -> Sequence[tuple[str, Any]]:
    """The names of a study's rows, and what `line` needs of each."""
    return module.rows(self._variant)

  def line(
    self, name: str, module: Any, row: str, options: Any, seed: int
  ) -> study.Line:
    """Does a row, unless it is done.

    Args:
      name: of the study.
      module: of that name.
      row: its name.
      options: what `rows` has of it.
      seed: of the row.
    """
    raise NotImplementedError

  def tables(
    self, name: str, module: Any, lines: Sequence[study.Line]
  ) -> Mapping[str, str]:
    """What a study found, in Markdown, by the names of its marks.

    Args:
      name: of the study.
      module: of that name.
      lines: of its rows and seeds.
    """
    raise NotImplementedError

  def lines(
    self, name: str, module: Any, seeds: Sequence[int]
  ) -> tuple[list[study.Line], list[str]]:
    """Does a study.

    Args:
      name: of the study.
      module: of that name.
      seeds: of each row.

    Returns:
      (lines, failures): a line for each row and seed, and a sentence on each
      that failed.

    Raises:
      ValueError: if two rows have one name, or a run was stopped: others do
        not begin then.
    """
    rows = self.rows(module)
    if len({row for row, _ in rows}) < len(rows):
      raise ValueError(
        f"study {name}: rows are {[row for row, _ in rows]}, of which two have "
        "one name."
      )
    lines, failures = [], []
    for row, options in rows:
      for seed in seeds:
        try:
          lines.append(self.line(name, module, row, options, seed))
        except study.StoppedError:
          raise
        except ERRORS as error:
          what = f"{name}, {row}, seed {seed}"
          failures.append(f"{what}: {type(error).__name__}: {error}")
    return lines, failures


@dataclasses.dataclass(frozen=True)
class Command:
  """A program that does the studies of a package.

  Attributes:
    description: for `--help`.
    package: of the studies, found by listing it.
    make: gives a `Study`, of the folder of results, the variant, and `folders`
      by name.
    page: gives the Markdown with marks for a study, and for `COST`, of the
      report and the module. Lines of other studies stay in the file of lines
      beside it.
    folders: further options that are paths or None, with what they are.
  """

  description: str
  package: types.ModuleType
  make: Callable[..., Study]
  page: Callable[[epath.Path, Any], epath.Path] = lambda report, module: report
  folders: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def names(self) -> list[str]:
    """The studies there are."""
    listed = pkgutil.iter_modules(self.package.__path__)
    return sorted(module.name for module in listed)

  def find(self, name: str) -> Any:
    """The module of a study.

    Raises:
      ValueError: if there is no such study.
    """
    if name not in self.names():
      raise registry.unknown("study", name, self.names())
    return importlib.import_module(f"{self.package.__name__}.{name}")

  def run(
    self,
    out: epath.Path,
    chosen: Sequence[str],
    *,
    variant: str = "full",
    seeds: Sequence[int] | None = None,
    report: epath.Path | None = None,
    **folders: epath.Path | None,
  ) -> list[str]:
    """Does studies and tabulates them.

    Args:
      out: the folder of results.
      chosen: names of studies.
      variant: of `VARIANTS`.
      seeds: of each row; None for the study's SEEDS, or else the usual ones.
      report: what `page` needs; None to print tables alone.
      **folders: of the attribute of that name.

    Returns:
      A sentence on each row that failed.

    Raises:
      ValueError: if there is no such study, two rows have one name, a run was
        stopped, or a page has no marks.
    """
    modules = {name: self.find(name) for name in chosen}
    work, failures = self.make(out, variant, **folders), []
    for name, module in modules.items():
      own = seeds or getattr(module, "SEEDS", SEEDS)
      lines, failed = work.lines(name, module, own)
      failures += failed
      if failed:
        continue
      made = work.tables(name, module, lines)
      for mark, table in made.items():
        console.say(f"\n{mark}\n\n{table}")
      if report is not None:
        _publish(self.page(report, module), module, made, lines)
    return failures

  def main(self, argv: Sequence[str] | None = None) -> None:
    """Reads the command line, does what is left to do and tabulates."""
    parser = argparse.ArgumentParser(
      description=self.description,
      formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--report", help="Markdown with marks, or its folder")
    parser.add_argument(
      "--studies", nargs="+", default=self.names(), metavar="NAME"
    )
    parser.add_argument("--variant", default="full", choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+")
    for name, what in self.folders.items():
      parser.add_argument(f"--{name}", help=what)
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in ("report", *self.folders)}
    with results_in(args.out) as out:
      failures = self.run(
        out,
        args.studies,
        variant=args.variant,
        seeds=args.seeds,
        **{name: path and storage.path(path) for name, path in given.items()},
      )
    if failures:
      sys.exit("\n".join(["These runs failed:", *failures]))


def _publish(
  page: epath.Path,
  module: Any,
  made: Mapping[str, str],
  lines: Sequence[study.Line],
) -> None:
  """Puts a study on its page, and beside it."""
  study.write_tables(page, made)
  if hasattr(module, "pictures"):
    for picture, content in module.pictures(lines).items():
      storage.write_whole(page.parent / picture, content)
  study.keep(page, lines, COST)


@contextlib.contextmanager
def results_in(out: str) -> Iterator[epath.Path]:
  """A folder of results, made; a user's error within ends the program."""
  folder = storage.path(out)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
      # The seeds of a row are one program.
      jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    yield folder
  except ERRORS as error:
    sys.exit(f"{type(error).__name__}: {error}")


def quiet() -> None:
  """Prepares a process of many runs."""
  # Orbax warns of options that are given on purpose.
  logging.set_verbosity(logging.ERROR)
  host_memory.keep_freed_memory()
