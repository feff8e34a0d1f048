"""Whole training steps on paper, read from the compiler: no TPU is needed.

  python -m benchmarks.steps_static [--json] [--only=maxvit] [--ranking=20]

For each case of `benchmarks.step_cases` it compiles the training step for a
v5e with libtpu, with our kernels and with the reference (`implementation` of
attention and feed-forward layers "xla") at the same batch, and prints of both

- time: XLA's `estimated_cycles` of its own operations, loops multiplied, and of
  our kernels the larger of their instruction bundles times the turns of their
  loops and of what their grids fetch at the bandwidth of the memory;
- bytes: what XLA counts that operations read and write, also within the chip,
  and what our kernels' grids fetch;
- peak: the memory that is alive at once;
- MFU: useful operations, three times those of the forward pass, over the time
  at the peak of the chip. Of causal scores half are useful.

Neither collectives nor what `unknown` names are in the time; copies between
memories are taken to run beside other work. Nothing here was run. XLA's cycles
are an estimate with a bias: a pass over bfloat16 is costed at two to four times
what the bandwidth of the memory takes, a kernel at what it takes.
"""

import concurrent.futures
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags

from benchmarks import dumping, step_cases
from tools import (
  absent_data,
  compile_only,
  compiled_steps,
  kernel_cycles,
  topologies,
)

_ONLY = flags.DEFINE_string("only", "", "Cases whose config has this in it.")
_CONFIG = flags.DEFINE_string(
  "config", "", "Another config than the cases', as maxvit:tiny_224."
)
_BATCH = flags.DEFINE_integer("batch", 1, "Its examples a chip.", lower_bound=1)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "What it runs on.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a row.")
_RANKING = flags.DEFINE_integer(
  "ranking", 0, "How many of the dearest operations of each step to print."
)
_CHIP = topologies.CHIPS["TPU v5 lite"]
_IMPLEMENTATIONS = ("auto", "xla")


class Kernel(NamedTuple):
  """What all calls of the kernels of one name take, as the step is traced.

  Attributes:
    count: how many calls there are.
    seconds: time of all.
    bytes: what XLA is told that they read and write.
    fetched: what their grids do.
  """

  count: int = 0
  seconds: float = 0.0
  bytes: int = 0
  fetched: int = 0


def main(argv: Sequence[str]) -> None:
  """Prints a row for each case."""
  del argv
  cases = [case for case in step_cases.CASES if _ONLY.value in case.config]
  if _CONFIG.value:
    cases = [step_cases.Case(_CONFIG.value, _BATCH.value, _TOPOLOGY.value)]
  if not cases:
    raise SystemExit(
      f"only={_ONLY.value!r} is in none of "
      + ", ".join(case.config for case in step_cases.CASES)
    )
  # What comes from a cache is not dumped.
  jax.config.update("jax_enable_compilation_cache", False)
  with dumping.two_processes() as (folder, steps):
    for case in cases:
      row = measure(case, folder, steps)
      print(json.dumps(row) if _JSON.value else describe(row), flush=True)


def measure(
  case: step_cases.Case, folder: Path, steps: concurrent.futures.Executor
) -> dict[str, Any]:
  """Returns the row of a case; see `dumping.two_processes`."""
  compiled = {
    which: steps.submit(compile_step, case, which) for which in _IMPLEMENTATIONS
  }
  flops = step_cases.useful_flops(case)
  kernels = {
    which: kernel_costs(case, which, folder) for which in _IMPLEMENTATIONS
  }
  ours, reference = (
    _side(compiled[which].result(), kernels[which], flops)
    for which in _IMPLEMENTATIONS
  )

  def ratio(key: str) -> float | None:
    return reference[key] / ours[key] if reference[key] and ours[key] else None

  return {
    "config": case.config,
    "length": case.length or None,
    "chip": _CHIP.name,
    "pass": "train",
    "topology": case.topology,
    "batch_per_chip": case.batch,
    "useful_flops": flops,
    "ratio_reference": ratio("ms"),
    "bytes_ratio": ratio("bytes"),
    "mfu": ours["mfu"],
    "ours": ours,
    "reference": reference,
  }


def compile_step(
  case: step_cases.Case, implementation: str
) -> compiled_steps.Outcome:
  """Compiles the training step of a case."""
  config = step_cases.config(case, implementation)
  return compiled_steps.compile_step(
    config, step_cases.devices(case), absent_data.info(config)
  )


def kernel_costs(
  case: step_cases.Case, implementation: str, folder: Path
) -> dict[str, Kernel]:
  """Returns what the kernels of a step take, by name."""
  made = step_cases.create(case, implementation)
  with jax.set_mesh(made.mesh):
    jaxpr = made.train_step.trace(made.state, made.batch).jaxpr.jaxpr
  calls = list(kernel_cycles.calls(jaxpr))
  seconds = {
    key: _kernel_seconds(case, call, folder)
    for key, call in {call.key: call for call in calls}.items()
  }
  found: dict[str, Kernel] = {}
  for call in calls:
    added = (1, seconds[call.key], call.bytes, call.fetched)
    before = found.get(call.name, Kernel())
    found[call.name] = Kernel(
      *(x + call.count * y for x, y in zip(before, added, strict=True))
    )
  return found


def _kernel_seconds(case, call, folder) -> float:
  dumping.clear(folder)
  arguments = [variable.aval for variable in call.equation.invars]
  compile_only.compile_for(_CHIP.name, call.function, *arguments)
  busy = 1.0
  if case.causal and call.name.startswith("flash"):
    rows, steps = call.equation.params["grid_mapping"].grid[-2:]
    if rows == steps:
      # Rows of tiles are as long as the longest; half are beyond the diagonal.
      busy = (rows + 1) / (2 * rows)
  cycles = kernel_cycles.cycles(folder, call, busy)
  return max(cycles / _CHIP.clock, call.fetched / _CHIP.bandwidth)


def _side(
  outcome: compiled_steps.Outcome, traced: dict[str, Kernel], flops: float
) -> dict[str, Any]:
  """Returns the figures of one implementation."""
  report = outcome.report
  if report is None:
    # It does not fit.
    return {"ms": None, "bytes": None, "mfu": None, "peak_bytes": None} | {
      "needed_bytes": outcome.needed_bytes
    }
  kernel_seconds = 0.0
  moved = report.bytes
  for kernel in report.kernels:
    costs = traced[kernel.name]
    # The compiler leaves out calls whose results nothing uses.
    share = kernel.count / costs.count
    kernel_seconds += share * costs.seconds
    moved += share * (costs.fetched - costs.bytes)
  seconds = report.cycles / _CHIP.clock + kernel_seconds
  return {
    "ms": 1e3 * seconds,
    "kernels_ms": 1e3 * kernel_seconds,
    "bytes": moved,
    "mfu": flops / seconds / _CHIP.peak,
    "peak_bytes": report.peak_bytes,
    "flops": report.flops,
    "unknown": report.unknown,
    # Path in the model, how many operations, and their cycles.
    "dearest": report.dearest[: _RANKING.value],
  }


def describe(row: dict[str, Any]) -> str:
  """Returns a row as lines for people."""
  name = row["config"] + (f" of {row['length']}" if row["length"] else "")
  lines = [
    f"{name}, {row['batch_per_chip']} a chip of {row['topology']}, "
    f"{row['pass']}: {_number(row['ratio_reference'])} times faster than the "
    f"reference, {_number(row['bytes_ratio'])} times fewer bytes, utilisation "
    f"{_number(row['mfu'])}"
  ]
  for name in ("ours", "reference"):
    side = row[name]
    if side["ms"] is None:
      gib = side["needed_bytes"] / 2**30
      lines.append(f"  {name}: does not fit, needs {gib:.1f} GiB")
      continue
    lines.append(
      f"  {name}: {side['ms']:.1f} ms, of which {side['kernels_ms']:.1f} in "
      f"kernels, {side['bytes'] / 1e9:.1f} GB, peak "
      f"{side['peak_bytes'] / 2**30:.1f} GiB"
    )
    lines += [f"    unknown: {text}" for text in side["unknown"]]
    lines += [
      f"    {cycles / _CHIP.clock * 1e3:8.3f} ms {count:5d} x {path}"
      for path, count, cycles in side["dearest"]
    ]
  return "\n".join(lines)


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
  app.run(main)
