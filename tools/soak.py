r"""Kills training at random moments and compares what comes of it, to the bit.

  python -m tools.soak --kills=300 --out=runs/soak
  python -m tools.soak --kills=300 --out=runs/soak --report=docs/reliability.md

Small runs of classification and of language, of one process and of two, are
killed while they start, restore, compile, train, evaluate, save and sample, and
are started again by the same command, until enough kills have been made. Each
run ends undisturbed, and its last arrays, optimizer and statistics included,
and its metrics are compared with those of a run that nothing interrupted.

Each kill and each finished run is a line of `<out>/soak_<worker>.jsonl`. The
same command goes on from there, and a larger --kills goes further; the number
of workers has to stay. With --report the figures of a document are written
anew. The exit code is 1 if anything differed.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tools.soaking import jobs, kills, report


def _prepare() -> None:
  """Imports what programs need, once, and starts no thread and no backend."""
  os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
  }
  os.chdir(jobs.ROOT)
  sys.path.insert(0, str(jobs.ROOT))
  import matplotlib.pyplot  # noqa: F401
  import sklearn.datasets  # noqa: F401

  import sample  # noqa: F401
  import train  # noqa: F401
  from configs import digits, language  # noqa: F401
  from input_pipeline import images, text  # noqa: F401


def _work(out: Path, args: argparse.Namespace) -> None:
  """Has the workers kill, all but the first in a fork."""
  soaks = [
    kills.Soak(out, args.seed, worker, args.workers)
    for worker in range(args.workers)
  ]
  if not args.kills or all(soak.is_done(args.kills) for soak in soaks):
    return
  _prepare()
  others = []
  for soak in soaks[1:]:
    pid = os.fork()
    if not pid:
      code = 1
      try:
        soak.go_on(args.kills)
        code = 0
      except BaseException:
        traceback.print_exc()
      finally:
        os._exit(code)
    others.append(pid)
  try:
    soaks[0].go_on(args.kills)
  finally:
    codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in others]
  if any(codes):
    sys.exit("A worker failed; its error is above.")


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line and runs."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--kills", type=int, required=True, help="in all; 0: only figures"
  )
  parser.add_argument("--out", type=Path, required=True, help="a local folder")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--workers", type=int, default=1, help="side by side")
  parser.add_argument("--report", type=Path, help="a document with the table")
  args = parser.parse_args(argv)
  out = args.out.resolve()
  target = args.report and args.report.resolve()
  if args.workers < 1 or not kills.began_with(out, args.workers):
    parser.error(
      f"--workers={args.workers}: it has to be at least 1, and as many as "
      f"began {out}."
    )
  _work(out, args)
  lines = kills.read_lines(*sorted(out.glob("soak_*.jsonl")))
  print(report.table(lines))
  if target:
    report.write(lines, target)
  if report.differing(lines):
    sys.exit(1)


if __name__ == "__main__":
  main()
