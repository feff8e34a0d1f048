"""Reads the text of a compiled program, as `compiled.as_text()` gives it.

What is read is the HLO of libtpu 0.0.52: instructions by computation, what they
call, and how large their arrays are where the chip pads them to tiles.
"""

import functools
import math
import re
from typing import NamedTuple

_SIZES = {"pred": 8, "token": 0, "opaque": 0}
# The dimensions, their order in memory, and the outermost tile.
_ARRAY = re.compile(
  r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::(?:T\(([\d,]+)\))?([^}]*))?\})?"
)
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(
  r"\s+(ROOT )?%?([\w.\-]+) = ((?:\(.*?\)|[^( ]\S*)) ([a-z][a-z0-9\-]*)\((.*)$"
)


class Array(NamedTuple):
  """An array: dtype, dimensions, bytes with padding, and if it is in HBM."""

  dtype: str
  shape: tuple[int, ...]
  bytes: int
  in_hbm: bool


class Instruction(NamedTuple):
  """An instruction: `result` is the text of its shape, `rest` what follows."""

  name: str
  result: str
  opcode: str
  operands: tuple[str, ...]
  rest: str

  @property
  def arrays(self) -> list[Array]:
    """What it makes; several of a tuple."""
    return arrays(self.result)

  @property
  def bytes(self) -> int:
    """Of all that it makes."""
    return sum(array.bytes for array in self.arrays)

  @property
  def called(self) -> list[str]:
    """Computations that it calls: a fusion's, a loop's, branches."""
    # The kernel of a custom call is text that may hold anything.
    text = self.rest.split(", backend_config=", 1)[0]
    names = re.findall(
      r"(?:calls|body|condition|to_apply|(?:true|false)_computation)=%?"
      r"([\w.\-]+)",
      text,
    )
    branches = re.search(r"branch_computations=\{([^}]*)\}", text)
    return names + re.findall(r"[\w.\-]+", branches[1] if branches else "")

  def attribute(self, name: str) -> str | None:
    """The computation that stands behind `name=`."""
    found = re.search(rf"[ ,]{name}=%?([\w.\-]+)", self.rest)
    return found and found[1]

  @property
  def cycles(self) -> int | None:
    """The compiler's estimate; None if it has none, or says "endless"."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
    cycles = int(found[1]) if found else 2**62
    return cycles if cycles < 2**62 else None

  @property
  def path(self) -> str:
    """Where in the model it comes from, as JAX says."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""


class Computation(NamedTuple):
  """Instructions by name, in their order; the last or marked one is the root.

  A fusion is such a computation too.
  """

  name: str
  instructions: dict[str, Instruction]
  root: str


class Program(NamedTuple):
  """Computations by name, and which of them is the program."""

  computations: dict[str, Computation]
  entry: str


def parse(text: str) -> Program:
  """Reads a program.

  Raises:
    ValueError: if there is no entry in it.
  """
  computations: dict[str, Computation] = {}
  entry = root = name = ""
  instructions: dict[str, Instruction] = {}
  for line in text.splitlines():
    if line.startswith("}"):
      computations[name] = Computation(name, instructions, root)
    elif line[:1] in "%E" and (header := _HEADER.match(line)):
      name, instructions, root = header[2], {}, ""
      if header[1]:
        entry = name
    elif found := _INSTRUCTION.match(line):
      is_root, called, result, opcode, rest = found.groups()
      operands = rest.split(")", 1)[0] if opcode != "constant" else ""
      instructions[called] = Instruction(
        called, result, opcode, tuple(_names(operands)), rest
      )
      root = called if is_root else root or ""
  if not entry:
    raise ValueError("The text has no ENTRY: it is not a compiled program.")
  return Program(computations, entry)


def _names(text: str) -> list[str]:
  return re.findall(r"%([\w.\-]+)", text)


@functools.lru_cache(maxsize=2**16)
def arrays(text: str) -> list[Array]:
  """The arrays of a shape's text."""
  found = []
  for dtype, shape, order, tile, others in _ARRAY.findall(text):
    shape = tuple(map(int, filter(None, shape.split(","))))
    sides = [shape[int(i)] for i in reversed(order.split(",")) if i]
    sides = sides or list(shape)
    sides = _padded(sides, [int(n) for n in tile.split(",") if n])
    size = math.prod(sides) * _bits(dtype) // 8
    found.append(Array(dtype, shape, size, "S(" not in others))
  return found


def _padded(sides: list[int], tile: list[int]) -> list[int]:
  """Sides from the slowest to the fastest, the last ones whole tiles."""
  if not tile:
    return sides
  sides = [1] * (len(tile) - len(sides)) + sides
  first = len(sides) - len(tile)
  return sides[:first] + [
    -(-side // n) * n for side, n in zip(sides[first:], tile, strict=True)
  ]


def _bits(dtype: str) -> int:
  """Bits of an element: those that its name has, as "bf16" and "f8e4m3fn"."""
  if dtype in _SIZES:
    return _SIZES[dtype]
  number = re.match(r"[a-z]+(\d+)", dtype)
  return int(number[1]) if number else 0
