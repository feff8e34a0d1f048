"""Which mesh axes the collectives of a compiled program go along."""

import math
import re
from collections.abc import Mapping

import numpy as np

from tools.hlo_text import Instruction

KINDS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
# What a send between slices is a part of; its receiving half is not counted.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


def kind(instruction: Instruction) -> str | None:
  """The kind of a collective, None for what is none or only ends one."""
  if instruction.opcode == "send":
    part = _BETWEEN_SLICES.search(instruction.rest)
    return part[1].lower().replace("_", "-") if part else None
  found = instruction.opcode.removesuffix("-start")
  return found if found in KINDS else None


def axis(instruction: Instruction, axes: Mapping[str, int]) -> str:
  """Names the mesh axes along which the devices of a collective differ.

  Args:
    instruction: a collective.
    axes: of the mesh, name and size; devices are numbered in its order.

  Returns:
    As "data" or "data+fsdp"; "part of data" where not all devices along them
    belong together, "none" where each device is alone.
  """
  if instruction.opcode == "send":
    return "slice"
  sizes = tuple(axes.values())
  groups = _groups(instruction.rest, math.prod(sizes))
  # [groups, members, axes]
  places = np.stack(np.unravel_index(groups, sizes), -1)
  differs = (places != places[:, :1]).any((0, 1))
  along = [name for name, d in zip(axes, differs, strict=True) if d]
  text = "+".join(along) or "none"
  permutes = "source_target_pairs" in instruction.rest
  whole = groups.shape[1] == math.prod(axes[name] for name in along)
  return text if permutes or whole else f"part of {text}"


def _groups(text: str, devices: int) -> np.ndarray:
  """Devices that belong together, [groups, members]."""
  if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
    found = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
    return np.array(found or [(0, 0)], int)
  if iota := re.search(
    r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
  ):
    shape = [int(n) for n in iota[3].split(",")]
    order = iota[4].split(",") if iota[4] else range(len(shape))
    numbers = np.arange(math.prod(shape)).reshape(shape)
    numbers = numbers.transpose([int(i) for i in order])
    return numbers.reshape(int(iota[1]), int(iota[2]))
  if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", text):
    return _mesh_groups(mesh[1], mesh[2])
  if lists := re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", text):
    found = re.findall(r"\{([\d,]+)\}", lists[1])
    return np.array([[int(n) for n in group.split(",")] for group in found])
  return np.arange(devices)[None]


def _mesh_groups(mesh: str, along: str) -> np.ndarray:
  """Groups of `mesh['a'=2,'b'=4] {'b'}`; `'b':(2)2` is a part of an axis."""
  sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", mesh)}
  parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along)
  shape, members = [], []
  for name, size in sizes.items():
    here = [(int(p or 1), int(n or size)) for a, p, n in parts if a == name]
    behind = 1
    for before, number in sorted(here):
      shape.append(before // behind)
      members.append(len(shape))
      shape.append(number)
      behind = before * number
    shape.append(size // behind)
  numbers = np.arange(math.prod(shape)).reshape(shape)
  numbers = np.moveaxis(numbers, members, range(-len(members), 0))
  return numbers.reshape(-1, math.prod(shape[i] for i in members))
