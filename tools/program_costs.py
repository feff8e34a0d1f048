"""Adds up what the operations of a compiled TPU program cost, loops and all."""

import collections
import dataclasses
import re

from tools import collectives as networks
from tools import operation_costs
from tools.hlo_text import Program

# What makes less is a scalar or a key, of which there are thousands.
_SMALL = 2**14


def _pairs() -> dict:
  return collections.defaultdict(lambda: (0, 0))


def _triples() -> dict:
  return collections.defaultdict(lambda: (0, 0, 0))


@dataclasses.dataclass
class Costs:
  """What a program costs on a chip.

  Attributes:
    cycles: XLA's estimate.
    estimates: of how many operations it has one.
    more_flops: of matrix products and kernels in turns of loops but the first.
    more_bytes: that operations read and write there.
    kernels: (count, flops, bytes) by name.
    collectives: (count, bytes) by (kind, axis, under a condition).
    unknown: (count, bytes of results) by what it is that has no cost.
    paths: (count, cycles) by where in the model operations come from, layers of
      one kind together.
  """

  cycles: int = 0
  estimates: int = 0
  more_flops: int = 0
  more_bytes: int = 0
  kernels: dict[str, tuple[int, int, int]] = dataclasses.field(
    default_factory=_triples
  )
  collectives: dict[tuple[str, str, bool], tuple[int, int]] = dataclasses.field(
    default_factory=_pairs
  )
  unknown: dict[str, tuple[int, int]] = dataclasses.field(
    default_factory=_pairs
  )
  paths: dict[str, tuple[int, int]] = dataclasses.field(default_factory=_pairs)

  def add(self, other: "Costs") -> None:
    """Adds what another part of the program costs."""
    for field in dataclasses.fields(self):
      mine, others = getattr(self, field.name), getattr(other, field.name)
      if isinstance(mine, int):
        setattr(self, field.name, mine + others)
        continue
      for key, values in others.items():
        more(mine, key, *values)


def more(totals: dict, key, *values: int) -> None:
  """Adds to what `totals` has of a key."""
  totals[key] = tuple(map(sum, zip(totals[key], values, strict=True)))


def add_up(program: Program, axes: dict[str, int]) -> Costs:
  """Returns what a program costs.

  Args:
    program: of a TPU.
    axes: of the mesh, name and size; without any no collective has an axis.
  """
  walk = _Walk(program, axes)
  walk.add(program.entry, 1, conditional=False)
  return walk.costs


class _Walk:
  """Goes through computations, each as often as it runs."""

  def __init__(self, program, axes):
    self.program = program
    self.axes = axes
    self.costs = Costs()

  def add(self, name: str, times: int, conditional: bool) -> None:
    computation = self.program.computations[name]
    channels: set[str] = set()
    for instruction in computation.instructions.values():
      opcode = instruction.opcode
      if opcode == "while":
        self._add_loop(instruction, computation, times, conditional)
      elif opcode == "conditional":
        self._add_condition(instruction, times)
      elif opcode in ("call", "async-start"):
        for called in instruction.called:
          self.add(called, times, conditional)
      elif opcode not in operation_costs.FREE:
        found = list(self._collectives(instruction, computation))
        self._add_operation(instruction, computation, times, bool(found))
        for each, where in found:
          # One that runs beside other work is in several fusions.
          channel = re.search(r"channel_id=\d+", each.rest)
          if channel is None or channel[0] not in channels:
            self._add_collective(each, where, times, conditional)
          channels.update([channel[0]] if channel else [])

  def _add_loop(self, loop, computation, times, conditional):
    turns = operation_costs.turns(loop, computation, self.program)
    if turns is None:
      turns = 1
      path = loop.path.removeprefix("jit(step)/") or loop.name
      name = f"loop of unknown turns, counted once ({path})"
      more(self.costs.unknown, name, 1, 0)
    for part in ("condition", "body"):
      self.add(loop.attribute(part), times * turns, conditional)

  def _add_condition(self, instruction, times):
    """Adds the dearest branch, and the collectives of all."""
    tried = []
    for name in instruction.called:
      branch = _Walk(self.program, self.axes)
      branch.add(name, times, conditional=True)
      tried.append(branch.costs)
    dearest = max(tried, key=lambda costs: costs.cycles)
    for costs in tried:
      if costs is not dearest:
        for key, values in costs.collectives.items():
          more(dearest.collectives, key, *values)
    self.costs.add(dearest)

  def _add_operation(self, instruction, computation, times, communicates):
    costs = self.costs
    if (kernel := operation_costs.kernel(instruction)) is not None:
      name, estimate = kernel
      if estimate is None:
        more(costs.unknown, f"kernel {name}", times, 0)
      flops, moved = estimate or (0, 0)
      more(costs.kernels, name, times, times * flops, times * moved)
    else:
      self._add_cycles(instruction, times, communicates)
      if times == 1:
        return
      place = instruction, computation, self.program
      flops = operation_costs.flops(*place)
      moved = operation_costs.moved(*place)
    costs.more_flops += (times - 1) * flops
    costs.more_bytes += (times - 1) * moved

  def _add_cycles(self, instruction, times, communicates):
    if (cycles := instruction.cycles) is not None:
      self.costs.cycles += times * cycles
      self.costs.estimates += 1
      place = re.sub(r"_\d+(?=/)", "", instruction.path)
      more(self.costs.paths, place, times, times * cycles)
    elif (size := instruction.bytes) > _SMALL:
      label = operation_costs.label(instruction)
      # Collectives themselves are listed in more detail.
      if label and not networks.kind(instruction):
        label = f"{label} around a collective" if communicates else label
        more(self.costs.unknown, label, times, times * size)

  def _add_collective(self, instruction, computation, times, conditional):
    kind = networks.kind(instruction)
    if computation.name.startswith("all-reduce-scatter"):
      # The compiler's own name of a fusion of a sum and a slice.
      kind = "reduce-scatter"
    given = (computation.instructions.get(o) for o in instruction.operands)
    sizes = [array.bytes for array in instruction.arrays]
    # What starts makes a tuple of what it was given and what there will be.
    starts = instruction.opcode.endswith(("-start", "send"))
    size = max(sizes) if starts else sum(sizes)
    size = max(size, sum(each.bytes for each in given if each))
    axis = networks.axis(instruction, self.axes) if self.axes else ""
    key = kind, axis, conditional
    more(self.costs.collectives, key, times, times * size)

  def _collectives(self, instruction, computation):
    """Yields a collective, or those of a fusion, and where they stand."""
    if networks.kind(instruction):
      yield instruction, computation
    if instruction.opcode == "fusion":
      for name in instruction.called:
        inner = self.program.computations[name]
        for each in inner.instructions.values():
          yield from self._collectives(each, inner)
