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
from typing import NamedTuple

_BRANCH_DELAY = 6


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


class Loop(NamedTuple):
  """A loop of a kernel: its first bundle, its last one, and how deep it lies.

  The outermost loop of a Pallas kernel, depth 1, is that over its grid.
  """

  first: int
  last: int
  depth: int

  @property
  def length(self) -> int:
    """Bundles of one turn, those of inner loops counted once."""
    return self.last - self.first + 1


def loops(folder: Path, kernel: str) -> list[Loop]:
  """Returns the loops of the latest `kernel` by their first bundle."""
  text = _latest(folder, kernel, "final_bundles").read_text()
  heads: dict[str, tuple[int, int]] = {}
  found = []
  for line in text.splitlines():
    place = re.match(r"\s*(0x[0-9a-f]+|0)\s+(L[BHE]|P[BF]|CT)?:? *(>*)", line)
    if not place:
      continue
    bundle = int(place[1], 16)
    if place[2] == "LB":
      for region in re.findall(r"Start region (\d+)", line):
        heads[region] = (bundle, len(place[3]))
    back = re.search(r"sbr\.rel.*?target = \$region(\d+)", line)
    if back and back[1] in heads:
      first, depth = heads[back[1]]
      found.append(Loop(first, bundle, depth))
  return sorted(found)


def conditional(folder: Path, kernel: str) -> list[int]:
  """Returns the bundles of what the latest `kernel` may jump over at a step.

  Those are the stretches without a loop that begin behind a forward branch, as
  `pl.when` makes them, in their order.
  """
  text = _latest(folder, kernel, "final_bundles").read_text()
  inner = [loop for loop in loops(folder, kernel) if loop.depth > 1]
  starts: dict[str, int] = {}
  found: list[tuple[int, int]] = []
  branch = -1
  for line in text.splitlines():
    place = re.match(r"\s*(0x[0-9a-f]+|0)\s", line)
    if not place:
      continue
    bundle = int(place[1], 16)
    for kind, region in re.findall(r"(Start|End) region (\d+)", line):
      if kind == "Start":
        # A branch takes effect some bundles behind the place where it stands.
        if branch >= 0 and bundle - branch <= _BRANCH_DELAY:
          starts[region] = bundle
      elif region in starts and not any(
        starts[region] <= loop.first <= bundle for loop in inner
      ):
        start = starts.pop(region)
        found.append((start, bundle - start + 1))
    if "sbr.rel" in line:
      branch = bundle
  return [length for _, length in sorted(found)]


def _latest(folder: Path, kernel: str, kind: str) -> Path:
  paths = sorted(
    path
    for path in folder.glob(f"*-{kernel}.*-{kind}.txt")
    # One kind ends with the name of the other.
    if not path.name.endswith(f"-schedule-analysis_{kind}.txt")
  )
  if not paths:
    raise FileNotFoundError(
      f"{folder} has no dump of the kernel {kernel!r}; it has "
      f"{', '.join(kernels(folder)) or 'none at all'}"
    )
  return paths[-1]
