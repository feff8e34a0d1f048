"""DuoFormer's weights: its trunk's own names, and timm's within blocks.

The authors' names of blocks are timm's; those around them are ours, as their
model could not be had under a licence. The trunk's come after "trunk.".
"""

import flax.linen as nn

from models import weight_maps
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

# Of a layer of patches without feed-forward layer, and of a block.
_BLOCK_MODULES = {
  "qkv": "attn.qkv",
  "out": "attn.proj",
  "attention_norm": "norm1",
  "attention/qkv": "attn.qkv",
  "attention/out": "attn.proj",
  "ffn_norm": "norm2",
  "expand": "mlp.fc1",
  "shrink": "mlp.fc2",
}
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}


def weight_map(model: nn.Module) -> WeightMap:
  """Returns the map for any DuoFormer, whatever its trunk."""
  trunk_map = weight_maps.of(weight_maps.part(model, "trunk"))

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    if path[0] == "trunk":
      name, trunk_layout = trunk_map(path[1:])
      return f"trunk.{name}", trunk_layout
    return _name(path), layout(path)

  return name_and_layout


def block_name(path: Path) -> str:
  """Maps a path within a block or layer to timm's name."""
  *modules, leaf = path
  return f"{_BLOCK_MODULES['/'.join(modules)]}.{_LEAVES.get(leaf, leaf)}"


def _name(path: Path) -> str:
  """As "scale_block.3.attn.qkv.weight" and "scale_tokens.position"."""
  for kind in ("scale_block_", "patch_layer_"):
    if path[0].startswith(kind):
      index = path[0].removeprefix(kind)
      return f"{kind[:-1]}.{index}.{block_name(path[1:])}"
  *modules, leaf = path
  return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def layout(path: Path) -> Layout:
  module, leaf = path[-2:]
  if module == "qkv" and leaf == "bias":
    return layouts.FLAT
  if leaf != "kernel":
    return layouts.SAME
  if module == "out":
    return layouts.DENSE_HEADS
  if "channel_token" in path:
    return layouts.CONV
  if module.startswith("projection_"):
    return layouts.DENSE_AS_CONV
  return layouts.DENSE
