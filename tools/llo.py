"""Reads what libtpu says about the instructions of a compiled TPU kernel.

libtpu writes the final instruction bundles of each program when asked to by an
environment variable, which it reads when it is loaded: call `enable` first. A
bundle takes about one cycle. The dump has no memory stalls, so the time of a
kernel is the larger of its cycles and of its memory traffic at full bandwidth.
The format is undocumented: what is here was read from libtpu 0.0.52.
"""

import os
import re
from pathlib import Path


def enable(folder: Path) -> None:
  """Has libtpu write its dumps to `folder`; before libtpu is loaded."""
  folder.mkdir(parents=True, exist_ok=True)
  os.environ["LIBTPU_INIT_ARGS"] = " ".join(
    [
      os.environ.get("LIBTPU_INIT_ARGS", ""),
      f"--xla_jf_dump_to={folder}",
      "--xla_jf_dump_llo_text=true",
    ]
  )


def kernels(folder: Path) -> list[str]:
  """Returns the names of the programs dumped, in the order of compilation."""
  suffix = "-schedule-analysis_final_bundles.txt"
  paths = sorted(folder.glob(f"*{suffix}"), key=lambda p: p.stat().st_mtime_ns)
  names = (re.sub(r"^\d+-", "", path.name) for path in paths)
  return list(dict.fromkeys(name.rsplit("-", 3)[0] for name in names))


def bundles(folder: Path, kernel: str) -> int:
  """Returns how many instruction bundles the latest `kernel` has.

  `kernel` is the name of a `pallas_call`. A loop counts once, whatever its
  number of turns.
  """
  text = _latest(folder, kernel, "schedule-analysis_final_bundles").read_text()
  return int(re.search(r"total scheduled bundles:\s+(\d+)", text)[1])


def utilisation(folder: Path, kernel: str) -> dict[str, int]:
  """Returns how many slots of each unit the latest `kernel` fills.

  Units are libtpu's: MATMUL, MATPUSH, XLU, VALU, EUP, VLOAD, VSTORE, SALU and
  those of spills (VLOAD:FILL, VSTORE:SPILL).
  """
  path = _latest(folder, kernel, "final_hlo-static-per-bundle-utilization")
  _, header, _, _, *rows = path.read_text().splitlines()
  units = [name.strip() for name in header.split(",")]
  counts = [list(map(int, row.split())) for row in rows if row.strip()]
  return dict(zip(units, map(sum, zip(*counts, strict=True)), strict=True))


def _latest(folder: Path, kernel: str, kind: str) -> Path:
  paths = sorted(folder.glob(f"*-{kernel}.*-{kind}.txt"))
  if not paths:
    raise FileNotFoundError(
      f"{folder} has no dump of the kernel {kernel!r}; it has "
      f"{', '.join(kernels(folder)) or 'none at all'}"
    )
  return paths[-1]
