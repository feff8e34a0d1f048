"""Two processes for static benchmarks: what one compiles, libtpu writes down.

libtpu writes gigabytes of a whole training step, and takes many times as long.
So only kernels are compiled by the process that asks, and all else by another,
for which libtpu writes nothing.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools import llo


@contextlib.contextmanager
def two_processes() -> Iterator[tuple[Path, concurrent.futures.Executor]]:
  """Gives the folder of what libtpu writes, and the other process.

  Enter it before libtpu is loaded, which reads its settings then. The folder
  goes at the end, also of a program that SIGTERM ends.
  """
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
  context = multiprocessing.get_context("spawn")
  folder = Path(tempfile.mkdtemp(prefix="libtpu_dump_"))
  try:
    with concurrent.futures.ProcessPoolExecutor(1, context) as executor:
      # It starts with its first job, and with the settings of that moment.
      executor.submit(os.getpid).result()
      llo.enable(folder)
      yield folder, executor
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def clear(folder: Path) -> None:
  """Forgets what was compiled before."""
  for path in folder.iterdir():
    path.unlink()
