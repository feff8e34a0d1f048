"""Cycles and memory traffic of the Pallas kernels in a program, for TPUs.

The traced program says which kernels are called, how often and on what grid;
what libtpu dumps when it compiles them says how many instruction bundles a step
of the grid has (`tools.llo`). A bundle takes about one cycle.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jax.extend import core

from tools import llo


class Call(NamedTuple):
  """A call of a kernel.

  Attributes:
    equation: of the traced program.
    count: how often it runs, as often as the loops around it turn.
  """

  equation: core.JaxprEqn
  count: int

  @property
  def name(self) -> str:
    """Of the kernel."""
    return self.equation.params["name"]

  @property
  def bytes(self) -> int:
    """What XLA is told that it reads and writes: each array once."""
    return self.equation.params["cost_estimate"].bytes_accessed

  @property
  def flops(self) -> int:
    """What XLA is told that it computes."""
    return self.equation.params["cost_estimate"].flops

  @property
  def fetched(self) -> int:
    """Bytes of all blocks that the grid moves."""
    return round(self.fetched_if())

  def fetched_if(self, busy: float = 1.0) -> float:
    """Bytes of all blocks that the grid moves.

    A block moves whenever an axis of the grid takes a step that its place
    depends on, or one before that axis does.

    Args:
      busy: share of the steps along the last axis at which the place of a block
        that depends on it changes: a list of tiles ends with its last one again
        and again.
    """
    mapping = self.equation.params["grid_mapping"]
    return sum(
      _block_bytes(mapping, block, busy) for block in mapping.block_mappings
    )

  @property
  def key(self) -> str:
    """The same for calls that are the same but for where they stand."""
    shapes = [
      [str(variable.aval) for variable in variables]
      for variables in (self.equation.invars, self.equation.outvars)
    ]
    grid = self.equation.params["grid_mapping"].grid
    body = hash(str(self.equation.params["jaxpr"]))
    return f"{self.name} {shapes} {grid} {body}"

  @property
  def function(self) -> Callable[..., Any]:
    """The call alone, to be compiled; the dump is named after it."""

    def run(*arguments):
      return self.equation.primitive.bind(*arguments, **self.equation.params)

    run.__name__ = self.name
    return run


def calls(jaxpr: core.Jaxpr, count: int = 1) -> Iterator[Call]:
  """Yields the kernel calls of a program, those of all branches too."""
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == "pallas_call":
      yield Call(equation, count)
      continue
    turns = equation.params["length"] if name == "scan" else 1
    for inner in core.jaxprs_in_params(equation.params):
      yield from calls(inner, count * turns)


def cycles(folder: Path, call: Call, busy: float = 1.0) -> float:
  """Returns grid steps times bundles of a step, inner loops by their turns.

  What stands under a condition is counted, but of several loops under
  conditions only the dearest, what begins and ends a row of tiles in flash
  attention once a row, and the short loops that the compiler adds where a block
  goes on beyond its array, and whose turns it does not say, once.

  Args:
    folder: where `llo.enable` had libtpu dump what it compiled.
    call: of a kernel that was compiled there.
    busy: share of the grid's steps that find a tile to work on.
  """
  name, params = call.name, call.equation.params
  dumped = next(k for k in llo.kernels(folder) if name in k).rsplit(".", 1)[0]
  found = llo.loops(folder, dumped)
  grid = params["grid_mapping"].grid
  # A single step is in no loop.
  steps = 1 if math.prod(grid) > 1 else 0
  outer = [loop for loop in found if loop.depth == steps]
  step = outer[0].length if outer else llo.bundles(folder, dumped)
  inner = [loop for loop in found if loop.depth > steps]
  turns = _turns(params["jaxpr"])
  step = _cycles(name, step, inner, steps + 1, turns)
  total = math.prod(grid) * step * busy
  under = llo.conditional(folder, dumped) if "flash" in name else []
  if under and not inner:
    # A tile without parts, which is full or is not: count the dearer.
    total -= math.prod(grid) * busy * (sum(under) - max(under))
  elif under:
    # What begins and ends a row of tiles is skipped at its other steps.
    total -= math.prod(grid[:-1]) * (grid[-1] * busy - 1) * sum(under)
  return total


class _Turns(NamedTuple):
  """A loop of a kernel as it was written: turns, its loops, and if it may not
  run, inside of a condition."""

  count: float
  inner: list["_Turns"]
  conditional: bool


def _turns(jaxpr, conditional: bool = False) -> list[_Turns]:
  """Returns the loops of a kernel that are not unrolled away."""
  found = []
  for equation in jaxpr.eqns:
    name, count = equation.primitive.name, 1
    if name == "scan":
      count = equation.params["length"] / equation.params["unroll"]
    # Inside of a loop the question is whether a turn of it runs.
    below = (conditional or name == "cond") and count == 1
    inner = []
    for part in core.jaxprs_in_params(equation.params):
      inner += _turns(part, below)
    found += [_Turns(count, inner, conditional)] if count > 1 else inner
  return found


def _cycles(name, length, loops, depth, turns) -> float:
  """Returns the cycles of a stretch of bundles with loops in it."""
  top = [loop for loop in loops if loop.depth == depth]
  if len(top) > len(turns):
    # The compiler's own are the shortest.
    top = sorted(sorted(top, key=lambda loop: -loop.length)[: len(turns)])
  if len(top) != len(turns):
    raise ValueError(
      f"kernel {name!r} has {len(turns)} loops at depth {depth} and the "
      f"compiler left {len(top)}"
    )
  always = 0.0
  sometimes = [0.0]
  for loop, written in zip(top, turns, strict=True):
    within = [
      other
      for other in loops
      if other.depth > depth and loop.first <= other.first <= loop.last
    ]
    cycles = written.count * _cycles(
      name, loop.length, within, depth + 1, written.inner
    )
    if written.conditional:
      sometimes.append(cycles)
    else:
      always += cycles
    length -= loop.length
  # Window and halo kernels repeat a step with more care where scores are beyond
  # the usual. Others do one of several things at a step: count the dearest.
  repeats = "window" in name or "halo" in name
  return length + always + (0 if repeats else max(sometimes))


def _block_bytes(mapping, block, busy) -> float:
  jaxpr = block.index_map_jaxpr.jaxpr
  axes = {x: {i} for i, x in enumerate(jaxpr.invars[: len(mapping.grid)])}

  def of(variables):
    return set().union(
      *(axes.get(x, ()) for x in variables if isinstance(x, core.Var))
    )

  for equation in jaxpr.eqns:
    axes.update(dict.fromkeys(equation.outvars, of(equation.invars)))
  steps = [i for i in of(jaxpr.outvars) if mapping.grid[i] > 1]
  sides = (getattr(side, "block_size", 1) for side in block.block_shape)
  size = math.prod(sides) * block.array_aval.dtype.itemsize
  last = max(steps, default=-1)
  along = busy if last == len(mapping.grid) - 1 else 1.0
  return math.prod(mapping.grid[: last + 1]) * size * along
