"""What the text of a compiled TPU program says of one operation's cost."""

import collections
import math
import re
from collections.abc import Mapping

import numpy as np

from tools.hlo_text import Computation, Instruction, Program

# Neither of these takes time, or only beside other work.
FREE = frozenset(
  (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("copy-start", "copy-done", "slice-start", "slice-done", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "domain"),
    *("add-dependency", "async-update", "async-done"),
    # What comes from another slice is counted where it is sent.
    "recv",
  )
)
_FREE_CALLS = frozenset(
  ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast")
)


def label(instruction: Instruction) -> str:
  """What to call an operation without a cost; "" for one that is none."""
  if instruction.opcode.endswith("-done"):
    return ""
  if instruction.opcode != "custom-call":
    return instruction.opcode
  target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)[1]
  return "" if target in _FREE_CALLS else f"custom call {target}"


def kernel(
  instruction: Instruction,
) -> tuple[str, tuple[int, int] | None] | None:
  """Name, and flops and bytes if it says them, of a kernel; None if it is none.

  They are what the `cost_estimate` of its `pallas_call` says.
  """
  if 'custom_call_target="tpu_custom_call"' not in instruction.rest:
    return None
  name = re.sub(r"\.\d+$", "", instruction.name)
  costs = re.search(r'"cost_estimate":\{([^}]*)\}', instruction.rest)
  found = dict(re.findall(r'"(\w+)":"?(\d+)', costs[1] if costs else ""))
  if "bytes_accessed" not in found:
    return name, None
  return name, (int(found.get("flops", 0)), int(found["bytes_accessed"]))


def turns(
  loop: Instruction, computation: Computation, program: Program
) -> int | None:
  """How often a loop of JAX turns, None if the program finds out.

  Its number goes up by one, and is compared with its end.
  """
  condition = program.computations[loop.attribute("condition")]
  compare = condition.instructions[condition.root]
  if compare.opcode != "compare" or "direction=LT" not in compare.rest:
    return None
  first, end = (
    _value(operand, condition, loop, computation)
    for operand in compare.operands
  )
  return None if first is None or end is None else max(end - first, 0)


def _value(name, within, loop=None, around=None) -> int | None:
  """What a scalar is where a loop begins, None if the program computes it."""
  found = within.instructions[name]
  if found.opcode == "constant":
    number = re.match(r"-?\d+(?=\))", found.rest)
    return int(number[0]) if number else None
  if found.opcode == "copy":
    return _value(found.operands[0], within, loop, around)
  if found.opcode == "get-tuple-element" and loop is not None:
    given = around.instructions[loop.operands[0]]
    if given.opcode == "tuple":
      index = int(re.search(r"index=(\d+)", found.rest)[1])
      return _value(given.operands[index], around)
  return None


def flops(
  instruction: Instruction, computation: Computation, program: Program
) -> int:
  """Operations of an operation's matrix products and convolutions."""
  if instruction.opcode in ("convolution", "dot"):
    return _product_flops(instruction, computation)
  if instruction.opcode != "fusion":
    return 0
  return sum(
    flops(each, program.computations[name], program)
    for name in instruction.called
    for each in program.computations[name].instructions.values()
  )


def _product_flops(instruction, computation) -> int:
  """Twice the products of a matrix product or a convolution."""
  left, right = (computation.instructions[o] for o in instruction.operands[:2])
  made = math.prod(instruction.arrays[0].shape)
  if instruction.opcode == "dot":
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1]
    sides = left.arrays[0].shape
    return 2 * made * math.prod(sides[int(i)] for i in axes.split(",") if i)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
  shapes = (x.arrays[0].shape for x in (left, right, instruction))
  image, filters, out = (
    dict(zip(names, shape, strict=True))
    for names, shape in zip(labels.groups(), shapes, strict=True)
  )
  places = [axis for axis in filters if axis.isdigit()]
  products = [
    _window_products(image[axis], filters[axis], out[axis], int(axis), window)
    for window in [_window(instruction.rest)]
    for axis in places
  ]
  outputs = made // math.prod(out[axis] for axis in places)
  return 2 * outputs * filters["i"] * math.prod(products)


def _window(text: str) -> dict[str, list[str]]:
  """What is said of a convolution's window, for each axis of the image."""
  found = re.search(r"window=\{([^}]*)\}", text)
  fields = (field.split("=") for field in found[1].split()) if found else ()
  return {name: values.split("x") for name, values in fields}


def _window_products(
  image: int, kernel: int, out: int, axis: int, window: Mapping[str, list[str]]
) -> int:
  """Products along an axis that are of the image, and not of its padding.

  A product of a matrix with each of several heads is a convolution as wide as
  the heads are many, nearly all of which is padding.
  """

  def field(name: str, default: str) -> str:
    return window[name][axis] if name in window else default

  stride = int(field("stride", "1"))
  low = int(field("pad", "0_0").split("_")[0])
  spread = int(field("lhs_dilate", "1"))
  step = int(field("rhs_dilate", "1"))
  # A place of the image with zeros between its numbers, [kernel].
  first = np.arange(kernel) * step - low
  if spread > 1:
    places = first[:, None] + stride * np.arange(out)
    inside = (places >= 0) & (places < spread * image) & (places % spread == 0)
    return int(inside.sum())
  # Of the places of one number of the kernel, those in the image.
  begin = np.maximum(0, -(first // stride))
  end = np.minimum(out - 1, (image - 1 - first) // stride)
  return int(np.maximum(0, end - begin + 1).sum())


def moved(
  instruction: Instruction, computation: Computation, program: Program
) -> int:
  """Bytes that an operation reads and writes, of a slice what it takes."""
  given = [computation.instructions[o].bytes for o in instruction.operands]
  made = instruction.bytes
  if instruction.opcode in ("dynamic-slice", "slice", "gather"):
    return 2 * made
  if instruction.opcode == "dynamic-update-slice":
    return 2 * given[1]
  if instruction.opcode != "fusion":
    return made + sum(given)
  inner = program.computations[instruction.called[0]].instructions
  uses = collections.defaultdict(list)
  for each in inner.values():
    for operand in each.operands:
      uses[operand].append(each)
  for each in inner.values():
    if each.opcode == "parameter":
      needed = [_needed(each.name, use) for use in uses[each.name]]
      if None not in needed:
        given[int(each.rest.split(")", 1)[0])] = sum(needed)
    elif each.opcode == "dynamic-update-slice" and each.bytes <= made:
      made -= each.bytes - inner[each.operands[1]].bytes
  return made + sum(given)


def _needed(name: str, use: Instruction) -> int | None:
  """Bytes that a use of an array needs of it; None for all of them."""
  if use.operands[0] != name:
    return None
  if use.opcode in ("dynamic-slice", "slice", "gather"):
    return use.bytes
  return 0 if use.opcode == "dynamic-update-slice" else None
