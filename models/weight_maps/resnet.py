"""ResNet's weights under timm's names, for plain ones torchvision's too."""

from models.resnet import ResNet
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

# Of the three convolutions of a deep stem: timm's of conv and norm.
_DEEP_STEM = {
  "stem_conv/conv_0": ("conv1.0", "conv1.1"),
  "stem_conv/conv_1": ("conv1.3", "conv1.4"),
  "stem_conv/conv_2": ("conv1.6", "bn1"),
  "stem_pool": ("maxpool.0", "maxpool.1"),
}
_SINGLE_STEM = {"stem_conv/conv_0": ("conv1", "bn1")}
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


def weight_map(model: ResNet) -> WeightMap:
  """Returns the map for a ResNet; names depend on its stem and shortcut.

  Raises:
    ValueError: for a gate of which no weights are published.
  """
  if model.gate not in ("squeeze_excite", "none"):
    raise ValueError(
      f"gate is {model.gate!r}, and weights are published with squeeze_excite "
      "or none"
    )
  stem = _SINGLE_STEM if model.stem == "conv7" else _DEEP_STEM
  # An average pooling is the first of timm's sequence, without weights.
  offset = 1 if model.shortcut == "average_pool" else 0
  modules = {
    "shortcut": (f"downsample.{offset}", f"downsample.{offset + 1}"),
    **{f"conv_{i}": (f"conv{i + 1}", f"bn{i + 1}") for i in range(3)},
  }
  pointwise = {"shortcut"}
  if model.block == "bottleneck":
    pointwise |= {"conv_0", "conv_2"}

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    *names, leaf = path
    leaf_name = _LEAVES[leaf]
    if names[0] == "head":
      return f"fc.{leaf_name}", _layout(leaf, layouts.DENSE)
    if not names[0].startswith("stage_"):
      *conv, kind = names
      return f"{_choose(stem['/'.join(conv)], kind)}.{leaf_name}", _layout(
        leaf, layouts.CONV
      )
    stage, block, conv, kind = names
    if conv == "se":
      module = "se.fc1" if kind == "reduce" else "se.fc2"
    else:
      module = _choose(modules[conv], kind)
    dense = conv == "se" or conv in pointwise
    name = f"layer{int(stage[6:]) + 1}.{block[6:]}.{module}.{leaf_name}"
    return name, _layout(leaf, layouts.DENSE_AS_CONV if dense else layouts.CONV)

  return name_and_layout


def _choose(names: tuple[str, str], kind: str) -> str:
  return names[0] if kind == "conv" else names[1]


def _layout(leaf: str, of_kernel: Layout) -> Layout:
  return of_kernel if leaf == "kernel" else layouts.SAME
