"""Cycles of the TPU kernels, read from the compiler: no TPU is needed.

  python -m benchmarks.kernels_static [--json] [--chips=v5e,v6e] [--only=window]
  python -m benchmarks.kernels_static --chips=v5e,h100 --only=sparse

For each case and pass, "forward" or "backward" (the gradients of all arguments,
forward pass included), it compiles our kernel and the XLA reference for a chip
with libtpu and prints

- bundles: the instruction bundles of our kernels times the turns of their
  loops, about one cycle each. What stands under a condition is counted, but of
  several loops under conditions only the dearest, what begins and ends a row of
  tiles in flash attention once a row, and the short loops that the compiler
  adds where a block goes on beyond its array, and whose turns it does not say,
  once;
- around: XLA's estimate, in cycles, of what it puts around our kernels;
- reference: XLA's estimate for the reference, the sum of `estimated_cycles` of
  its operations, or where that is not whole its `optimal_seconds`, which is
  optimistic by a third or so;
- bytes: what the grids of our kernels fetch and write, a block again whenever
  its place changes, and what XLA counts for the operations around them; as a
  share of the arguments and results; and what XLA counts for the reference;
- tile, tiles, density: of a mask of `benchmarks.sparse_cases`, how many tiles
  of that size are not empty, and which share of all they are;
- floor: the time to read the arguments and write the results once, as the chip
  pads them, at the full bandwidth of its memory; and the share of the larger of
  that and of the useful operations at peak speed.

A time of ours is the larger of bundles and of the kernels' memory traffic, plus
`around`. Nothing here was run: memory stalls are not in it. The clock is known
for v5e (peak / MXUs / 128^2 / 2); for v6e cycles are compared with cycles.
"""

import concurrent.futures
import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags

from benchmarks import dumping, flag_checks, sparse_cases, static_cases
from tools import compile_only, kernel_cycles

_CHIPS = flag_checks.define_names(
  "chips",
  ["v5e", "v6e"],
  ["v5e", "v6e", "h100"],
  "Chips to compile for; h100 for masks of `sparse_cases` only.",
)
_ONLY = flags.DEFINE_string("only", "", "Cases whose name has this in it.")
_PASSES = flag_checks.define_names(
  "passes", ["forward", "backward"], ["forward", "backward"], "What of them."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a row.")

# Bytes and operations (bfloat16) a second, cycles a second where known.
BANDWIDTH = {"v5e": 819e9, "v6e": 1638e9}
PEAK = {"v5e": 197e12, "v6e": 918e12}
CLOCK = {"v5e": 1.5e9}


def main(argv: Sequence[str]) -> None:
  """Prints a row for each case, chip and pass."""
  del argv
  cases = [case for case in static_cases.cases() if _ONLY.value in case.name]
  if not cases:
    raise SystemExit(
      f"only={_ONLY.value!r} is in none of "
      + ", ".join(case.name for case in static_cases.cases())
    )
  with dumping.two_processes() as (folder, references):
    for case in cases:
      for chip in _CHIPS.value:
        for which in _PASSES.value:
          platform = "gpu" if chip in compile_only.GPUS else "tpu"
          if which not in case.passes or platform not in case.platforms:
            continue
          if platform == "gpu":
            row = references.submit(measure_gpu, case.name, chip).result()
          else:
            row = measure(case, chip, which, folder, references)
          text = json.dumps(row) if _JSON.value else describe(row)
          print(text, flush=True)


def measure(
  case: static_cases.Case,
  chip: str,
  which: str,
  folder: Path,
  references: concurrent.futures.Executor,
) -> dict:
  """Returns the row of one case on one chip; see `dumping.two_processes`."""
  reference = references.submit(reference_cost, case.name, chip, which)
  ours = _passed(functools.partial(case.function, "tpu"), which)
  dumping.clear(folder)
  compiled = compile_only.compile_for(chip, ours, *case.arguments)
  tiles = case.tiles("tpu") if case.tiles else None
  busy = tiles.busy if tiles else case.busy
  bundles, traffic, fetched = _kernels(ours, case, folder, busy)
  moved = compiled.cost_analysis()["bytes accessed"] - traffic + fetched
  around = _estimated_cycles(compiled) or 0
  density = tiles.density if tiles else 1.0
  floor = _floor_seconds(compiled, case.flops * density, chip, which)
  cycles, seconds, reference_moved = reference.result()
  clock = CLOCK.get(chip)
  ours_seconds = reference_seconds = None
  if clock:
    ours_seconds = max(bundles / clock, traffic / BANDWIDTH[chip])
    ours_seconds += around / clock
    reference_seconds = cycles / clock if cycles else seconds
  if cycles:
    ratio = cycles / (bundles + around)
  elif clock and seconds:
    ratio = seconds / ours_seconds
  else:
    ratio = None
  return {
    "kernel": case.name,
    "chip": chip,
    "shape": case.shape,
    "pass": which,
    "bundles": bundles,
    "around_cycles": around,
    "reference_cycles": cycles,
    "reference_optimal_us": _micro(seconds),
    "ours_us": _micro(ours_seconds),
    "reference_us": _micro(reference_seconds),
    "floor_us": _micro(floor),
    "bytes": moved,
    "reference_bytes": reference_moved,
    "ratio_bytes": moved / _least_bytes(compiled),
    "ratio_reference": ratio,
    "ratio_floor": ours_seconds / floor if ours_seconds else None,
    **_of_tiles(tiles),
  }


def measure_gpu(name: str, chip: str) -> dict:
  """Returns the row of a case of `sparse_cases` on a GPU.

  The compilers say nothing of cycles there: a row has the tiles that programs
  work on, the bytes that these are made of, and the temporary memory.
  """
  case = next(case for case in static_cases.cases() if case.name == name)
  compiled = compile_only.compile_for(
    chip, functools.partial(case.function, "gpu"), *case.arguments
  )
  memory = compiled.memory_analysis()
  return {
    "kernel": case.name,
    "chip": chip,
    "shape": case.shape,
    "pass": "forward",
    "temporary_bytes": memory.temp_size_in_bytes,
    "bytes": sparse_cases.least_bytes(name.removeprefix("sparse "), "gpu"),
    **_of_tiles(case.tiles("gpu")),
  }


def _of_tiles(tiles: sparse_cases.Tiles | None) -> dict:
  if tiles is None:
    return {"tile": None, "tiles": None, "density": None}
  return {
    "tile": "x".join(map(str, tiles.sides)),
    "tiles": tiles.seen,
    "density": tiles.density,
  }


def reference_cost(
  name: str, chip: str, which: str
) -> tuple[int | None, float | None, float | None]:
  """Returns XLA's estimated cycles, optimal seconds and bytes of the reference.

  None for what is unknown, all where the reference does not fit the chip or is
  not asked for.
  """
  case = next(case for case in static_cases.cases() if case.name == name)
  if not case.has_reference:
    return None, None, None
  reference = _passed(functools.partial(case.function, "xla"), which)
  try:
    compiled = compile_only.compile_for(chip, reference, *case.arguments)
  except jax.errors.JaxRuntimeError as error:
    if "CompileTimeHbmOom" in str(error):
      return None, None, None
    raise
  moved = compiled.cost_analysis()["bytes accessed"]
  return _estimated_cycles(compiled), _optimal_seconds(compiled), moved


def _passed(function: Callable, which: str) -> Callable:
  """Returns the forward pass, or the forward and the backward pass."""
  if which == "forward":
    return function

  def gradients(*arguments):
    # The gradient of the output is an array like any other, not a constant.
    out, pull = jax.vjp(function, *arguments)
    return pull(out)

  return gradients


def _kernels(
  function: Callable, case: static_cases.Case, folder: Path, busy: float
) -> tuple[float, float, float]:
  """Returns the cycles and the bytes of all kernels of a function.

  The bytes first as XLA is told, and then as the grids fetch and write blocks.
  """
  jaxpr = jax.make_jaxpr(function)(*case.arguments)
  cycles = traffic = fetched = 0.0
  for call in kernel_cycles.calls(jaxpr.jaxpr):
    cycles += call.count * kernel_cycles.cycles(folder, call, busy)
    traffic += call.count * call.bytes
    fetched += call.count * call.fetched_if(busy)
  return cycles, traffic, fetched


def _estimated_cycles(compiled) -> int | None:
  """Returns XLA's estimate of the entry's operations, None if not whole."""
  entry = compiled.as_text().split("\nENTRY ")[1]
  if " while(" in entry:
    return None
  counts = [int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', entry)]
  total = sum(counts)
  return total if 0 < total < 2**62 else None


def _optimal_seconds(compiled) -> float | None:
  seconds = compiled.cost_analysis()["optimal_seconds"]
  # Each operation without a cost adds -1 second.
  return seconds if seconds > 0 else None


def _floor_seconds(compiled, flops: float, chip: str, which: str) -> float:
  flops *= 1 if which == "forward" else 3.5
  return max(_least_bytes(compiled) / BANDWIDTH[chip], flops / PEAK[chip])


def _least_bytes(compiled) -> int:
  """Returns the bytes of arguments and results, as the chip pads them."""
  memory = compiled.memory_analysis()
  return memory.argument_size_in_bytes + memory.output_size_in_bytes


def _micro(seconds: float | None) -> float | None:
  return None if seconds is None else seconds * 1e6


def describe(row: dict) -> str:
  """Returns a row as a line for people."""
  if "temporary_bytes" in row:
    return (
      f"{row['chip']} {row['kernel']} {row['shape']}: {row['tiles']:,} tiles "
      f"of {row['tile']}, density {row['density']:.4f}, "
      f"{row['bytes'] / 1e6:,.0f} MB, "
      f"{row['temporary_bytes'] / 1e6:,.1f} MB temporary"
    )

  def number(key, unit=""):
    value = row[key]
    return "-" if value is None else f"{value:,.2f}{unit}"

  return (
    f"{row['chip']} {row['kernel']} {row['shape']} {row['pass']}: "
    f"{row['bundles']:,.0f} bundles + {row['around_cycles']:,} around, "
    f"{number('ours_us', ' us')}; reference {number('reference_us', ' us')}, "
    f"floor {number('floor_us', ' us')}, {number('ratio_bytes')} of its bytes; "
    f"{number('ratio_reference')} times faster than the reference, "
    f"{number('ratio_floor')} of the floor"
  )


if __name__ == "__main__":
  app.run(main)
