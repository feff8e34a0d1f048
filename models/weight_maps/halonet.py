"""HaloNet's weights under the names of timm's halonets."""

from models.halonet import HaloNet
from models.weight_maps import layouts
from models.weight_maps.layouts import Path, WeightMap

_BLOCK = {
  "conv_in": "conv1_1x1",
  "conv_mid": "conv2_kxk",
  "conv_out": "conv3_1x1",
  "se": "attn",
  "eca": "attn.conv",
  "attention": "self_attn",
  "attention_norm": "post_attn",
  "reduce": "fc1",
  "expand": "fc2",
  "norm": "bn",
}
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
  "height_rel": "pos_embed.height_rel",
  "width_rel": "pos_embed.width_rel",
}
# Ours is [neighbours, 1], theirs [1, 1, neighbours].
_NEIGHBOURS = layouts.Layout(
  shape=lambda shape: (1, 1, shape[0]),
  load=lambda tensor, shape: tensor.reshape(shape),
  store=lambda array: array.reshape(1, 1, -1),
)


def weight_map(model: HaloNet) -> WeightMap:
  """Returns the map, which knows how timm names stem and shortcuts."""

  def name_and_layout(path: Path) -> tuple[str, layouts.Layout]:
    *modules, leaf = path
    return (
      ".".join([*_module(model, modules), _LEAVES[leaf]]),
      _layout(model, modules, leaf),
    )

  return name_and_layout


def _module(model: HaloNet, modules: list[str]) -> list[str]:
  rest = [_BLOCK.get(module, module) for module in modules]
  match modules[0]:
    case "stem_conv" if model.stem == "conv3":
      return ["stem", rest[-1]]
    case "stem_conv":
      return ["stem", f"conv{int(modules[1][-1]) + 1}", rest[-1]]
    case "final_conv":
      return rest
    case "head":
      return ["head", "fc"]
  stage, block = (name.rpartition("_")[2] for name in modules[:2])
  rest = rest[2:]
  if rest[0] == "shortcut" and model.shortcut == "average_pool":
    rest.insert(1, "conv")
  return ["stages", stage, block, *rest]


def _layout(model: HaloNet, modules: list[str], leaf: str) -> layouts.Layout:
  if leaf != "kernel":
    return layouts.SAME
  if modules[0] == "head":
    return layouts.DENSE
  if modules[-1] == "eca":
    return _NEIGHBOURS
  if modules[0] == "stem_conv" or modules[-2] == "conv_mid":
    return layouts.CONV
  return layouts.DENSE_AS_CONV
