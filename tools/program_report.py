"""What a compiled program needs: memory, work, collectives and time.

All is of one chip, and from the compiler alone: nothing was run. XLA counts
what a loop does once; here it is multiplied by the turns of the loop, where the
program says how many there are. The time is

- XLA's `estimated_cycles` of its own operations, by the clock of the chip, and
- of our kernels, which it does not know, the larger of their operations at peak
  speed and of their bytes at the bandwidth of the memory, as their
  `cost_estimate` has them: a floor, so that the share of kernels is one too;
  `benchmarks.kernels_static` counts their instructions.

Of a condition the dearest branch counts. What could not be costed is named in
`unknown` and not in the time: collectives above all, which may or may not run
beside other work. The bytes are XLA's, also of what stays in the chip's own
memory.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from etils import epath

from tools import hlo_text, program_costs, topologies

# An older jaxlib cannot print all that a newer libtpu makes: with jax 0.10.2
# large steps for these, which have sparse cores.
_UNPRINTABLE = ("TPU v5", "TPU v6 lite")


class Collective(NamedTuple):
  """Collectives of one kind along the same axes.

  Attributes:
    kind: as "all-reduce".
    axis: of the mesh, as "data" or "data+fsdp".
    count: how often one runs in a step.
    bytes: of the larger of what a chip gives and gets, all together.
    conditional: whether they run only where a condition holds.
  """

  kind: str
  axis: str
  count: int
  bytes: int
  conditional: bool


class Kernel(NamedTuple):
  """One of our kernels: how often it runs, and all these runs together.

  `seconds` are None on a chip whose peak is not known.
  """

  name: str
  count: int
  flops: int
  bytes: int
  seconds: float | None


@dataclasses.dataclass(frozen=True)
class Report:
  """What a program needs on each chip.

  Attributes:
    flops: operations, those of kernels too.
    bytes: that operations read and write.
    seconds: estimate, without what `unknown` names; None without a clock.
    cycles: XLA's part of it; None where it has estimated nothing.
    unknown: what could not be costed.
    argument_bytes: of arguments.
    temporary_bytes: of what lives within a step.
    peak_bytes: the most that is alive at once.
    collectives: the largest first; None if the program cannot be read.
    kernels: the dearest first; likewise.
    kernel_share: of `seconds`, what kernels take at least; None if not known.
    dearest: (path in the model, count, cycles) of XLA's operations, layers of
      one kind together, the dearest first.
  """

  flops: float
  bytes: float
  seconds: float | None
  cycles: int | None
  unknown: list[str]
  argument_bytes: int
  temporary_bytes: int
  peak_bytes: int
  collectives: list[Collective] | None
  kernels: list[Kernel] | None
  kernel_share: float | None
  dearest: list[tuple[str, int, int]]


def dumping(kind: str, folder: str) -> dict[str, Any]:
  """Options with which the compiler writes programs to `folder`.

  Args:
    kind: of device; none are needed where jaxlib can print all programs.
    folder: for `read`.
  """
  if kind not in _UNPRINTABLE:
    return {}
  return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}


def read(
  compiled: jax.stages.Compiled,
  mesh: jax.sharding.Mesh | None = None,
  dump: str | None = None,
) -> Report:
  """Reads a compiled program.

  Args:
    compiled: for a TPU; of other chips most is unknown.
    mesh: whose axes collectives are named after; that of the arguments if None.
    dump: a folder that had nothing but what `dumping` had the compiler write of
      this program, read where jaxlib cannot print it. A program out of a cache
      has written nothing.
  """
  shardings = jax.tree.leaves(compiled.input_shardings)
  if mesh is None:
    mesh = next((s.mesh for s in shardings if hasattr(s, "mesh")), None)
  chip = None
  if shardings:
    device = min(shardings[0].device_set, key=lambda device: device.id)
    chip = topologies.CHIPS.get(device.device_kind)
  counted, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    text = dump and _dumped(dump)
    if not text:
      return _without_text(str(error).partition("\n")[0], counted, memory)
  return of_text(
    text,
    counted=counted,
    memory=memory,
    axes={} if mesh is None else dict(mesh.shape),
    chip=chip,
  )


def _dumped(folder: str) -> str | None:
  """The program that the compiler wrote itself."""
  # One program, as it is when nothing of it changes any more.
  found = list(epath.Path(folder).glob("*.after_codegen.txt"))
  return found[0].read_text() if len(found) == 1 else None


def _without_text(
  reason: str, counted: dict[str, float], memory: Any
) -> Report:
  """What the compiler counts, where its program cannot be read."""
  return Report(
    flops=counted.get("flops", 0),
    bytes=counted.get("bytes accessed", 0),
    seconds=None,
    cycles=None,
    unknown=[
      "time, kernels and collectives, and loops count once: the program "
      f"cannot be read ({reason})"
    ],
    **_sizes(memory),
    collectives=None,
    kernels=None,
    kernel_share=None,
    dearest=[],
  )


def _sizes(memory: Any) -> dict[str, int]:
  """Bytes of `memory_analysis()`, 0 for what it does not say."""
  return {
    name: getattr(memory, attribute, 0)
    for name, attribute in (
      ("argument_bytes", "argument_size_in_bytes"),
      ("temporary_bytes", "temp_size_in_bytes"),
      ("peak_bytes", "peak_memory_in_bytes"),
    )
  }


def of_text(
  text: str,
  *,
  counted: dict[str, float],
  memory: Any,
  axes: dict[str, int],
  chip: topologies.Chip | None,
) -> Report:
  """`read`, of the parts of a compiled program.

  Args:
    text: `as_text()`.
    counted: `cost_analysis()`: "flops" and "bytes accessed", loops once.
    memory: `memory_analysis()`, or None.
    axes: of the mesh, name and size.
    chip: None if it is not known.
  """
  costs = program_costs.add_up(hlo_text.parse(text), axes)
  kernels = [
    Kernel(name, *values, chip and chip.seconds(*values[1:]))
    for name, values in costs.kernels.items()
  ]
  kernels.sort(key=lambda kernel: -(kernel.seconds or kernel.flops))
  cycles = costs.cycles if costs.estimates else None
  seconds = None
  share = None if kernels else 0.0
  if cycles is not None and chip and chip.clock:
    of_kernels = sum(kernel.seconds for kernel in kernels)
    seconds = cycles / chip.clock + of_kernels
    share = of_kernels / seconds if seconds else share
  moved = [
    Collective(kind, axis, *values, conditional)
    for (kind, axis, conditional), values in costs.collectives.items()
  ]
  if moved:
    total = sum(each.count for each in moved), sum(each.bytes for each in moved)
    costs.unknown["collective"] = total
  unknown = sorted(costs.unknown.items(), key=lambda item: -item[1][1])
  return Report(
    flops=counted.get("flops", 0) + costs.more_flops,
    bytes=counted.get("bytes accessed", 0) + costs.more_bytes,
    seconds=seconds,
    cycles=cycles,
    unknown=[_describe(name, *values) for name, values in unknown],
    **_sizes(memory),
    collectives=sorted(moved, key=lambda each: -each.bytes),
    kernels=kernels,
    kernel_share=share,
    dearest=sorted(
      ((path, *values) for path, values in costs.paths.items()),
      key=lambda entry: -entry[2],
    ),
  )


def _describe(name: str, count: int, size: int) -> str:
  """As "108 x all-reduce, 121.3 MB"."""
  return f"{count} x {name}" + (f", {size / 1e6:,.1f} MB" if size else "")
