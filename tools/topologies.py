"""TPU slices by name, and what is known of their chips."""

import importlib.util
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.experimental import topologies


class Chip(NamedTuple):
  """A device of JAX: a chip, of TPU7x half a chip.

  Attributes:
    name: as in the names of topologies.
    peak: operations a second in bfloat16.
    bandwidth: bytes a second of its memory.
    memory: bytes of it that libtpu 0.0.52 lets a program use.
    clock: cycles a second; None if nothing public says it.
  """

  name: str
  peak: float
  bandwidth: float
  memory: int
  clock: float | None

  def seconds(self, flops: float, moved: float) -> float:
    """The least time for operations and bytes that run beside each other."""
    return max(flops / self.peak, moved / self.bandwidth)


def _gib(size: float) -> int:
  return int(size * 2**30)


# By `device_kind`. Peaks and bandwidths are Google's; clocks follow from the
# peak, the matrix units and their 128 x 128 x 2 operations a cycle, and are not
# known of chips with other units.
CHIPS = {
  "TPU v4": Chip("v4", 275e12, 1228e9, _gib(30.75), 1.05e9),
  "TPU v5 lite": Chip("v5e", 197e12, 819e9, _gib(15.75), 1.5e9),
  "TPU v5": Chip("v5p", 459e12, 2765e9, _gib(95.73), 1.75e9),
  "TPU v6 lite": Chip("v6e", 918e12, 1638e9, _gib(31.24), None),
  "TPU7x": Chip("tpu7x", 1153.5e12, 3685e9, _gib(94.74), None),
}
# Google's names of slices count cores of v4 and v5p, of which a chip has two,
# and chips of the others.
_CUBES = {
  8: "2x2x1",
  16: "2x2x2",
  32: "2x2x4",
  64: "2x4x4",
  128: "4x4x4",
  256: "4x4x8",
  512: "4x8x8",
  1024: "8x8x8",
}
_SQUARES = {
  1: "1x1",
  4: "2x2",
  8: "2x4",
  16: "4x4",
  32: "4x8",
  64: "8x8",
  128: "8x16",
  256: "16x16",
}
ALIASES = {
  f"{name}-{size}": f"{chip}:{sides}"
  for name, chip, slices in (
    ("v4", "v4", _CUBES),
    ("v5p", "v5p", _CUBES),
    ("v5e", "v5e", _SQUARES),
    ("v5litepod", "v5e", _SQUARES),
    ("v6e", "v6e", _SQUARES),
  )
  for size, sides in slices.items()
}


def resolve(name: str) -> str:
  """The topology of a name, as "v5e:16x16" of "v5e-256".

  Raises:
    ValueError: if it is none.
  """
  resolved = ALIASES.get(name, name)
  if not re.fullmatch(r"(v4|v5e|v5p|v6e|tpu7x):\d+x\d+(x\d+)?", resolved):
    raise ValueError(
      f"topology={name!r} is no TPU slice: give one of libtpu's, as v5e:16x16, "
      f"v4:2x2x4 or tpu7x:2x2x1, or one of {', '.join(ALIASES)}."
    )
  return resolved


def devices(name: str, num_slices: int = 1) -> Sequence[Any]:
  """The devices of slices that are not here, to compile for.

  On v4 a device is a whole chip, as where JAX runs on it.

  Args:
    name: a topology of libtpu or an alias of it.
    num_slices: of a job that goes over several.

  Raises:
    ValueError: if there is no such slice, or no libtpu to ask.
  """
  resolved = resolve(name)
  if num_slices < 1:
    raise ValueError(f"num_slices={num_slices} must be 1 or more.")
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"topology={name!r} needs libtpu, which compiles for TPUs that are not "
      "here: pip install -e '.[compile]'."
    )
  options: dict[str, Any] = {}
  if resolved.endswith(":1x1"):
    options["chips_per_host_bounds"] = (1, 1, 1)
  if resolved.startswith("v4:"):
    options["chip_config_name"] = "megacore"
  if num_slices > 1:
    options["num_slices"] = num_slices
  try:
    return topologies.get_topology_desc(
      platform="tpu", topology_name=resolved, **options
    ).devices
  except Exception as error:
    # Whatever libtpu raises for a shape that it does not know.
    raise ValueError(
      f"topology={name!r}: libtpu has no {resolved} of {num_slices} slice(s): "
      f"{error}"
    ) from error
