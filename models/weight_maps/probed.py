"""Weights of a trunk with a probe: the trunk's own, and ours of the probe."""

import flax.linen as nn

from models import weight_maps
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap


def weight_map(model: nn.Module) -> WeightMap:
  """Returns the map for any trunk that has one; names begin with "trunk."."""
  trunk_map = weight_maps.of(weight_maps.part(model, "trunk"))

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    if path[0] == "trunk":
      name, trunk_layout = trunk_map(path[1:])
      return f"trunk.{name}", trunk_layout
    return ".".join(path), layouts.SAME

  return name_and_layout
