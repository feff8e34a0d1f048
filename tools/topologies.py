"""TPU slices by name, and what is known of their chips."""

from typing import NamedTuple


class Chip(NamedTuple):
  """A device of JAX: a chip, of TPU7x half a chip.

  Attributes:
    name: as in the names of topologies.
    peak: operations a second in bfloat16.
    bandwidth: bytes a second of its memory.
    memory: bytes that libtpu 0.0.52 lets a program use.
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
  "TPU v4": Chip("v4", 275e12, 1228e9, _gib(30.5), 1.05e9),
  "TPU v5 lite": Chip("v5e", 197e12, 819e9, _gib(15.75), 1.5e9),
  "TPU v5": Chip("v5p", 459e12, 2765e9, _gib(95.73), 1.75e9),
  "TPU v6 lite": Chip("v6e", 918e12, 1638e9, _gib(31.24), None),
  "TPU7x": Chip("tpu7x", 1153.5e12, 3685e9, _gib(94.74), None),
}
