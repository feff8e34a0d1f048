"""MobileNet's weights under timm's names."""

from models.mobilenet import MobileNet
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
_OUTSIDE = {
  "stem_conv": ("conv_stem", "bn1"),
  "final_conv": ("conv_head", "bn2"),
}
# Convolution and norm, in blocks that expand and in those that do not.
_EXPANDING = {
  "expand": ("conv_pw", "bn1"),
  "depth": ("conv_dw", "bn2"),
  "out": ("conv_pwl", "bn3"),
}
_OTHERS = {"depth": ("conv_dw", "bn1"), "out": ("conv_pw", "bn2")}


def weight_map(model: MobileNet) -> WeightMap:
  """Returns the map for a MobileNet as published.

  Raises:
    ValueError: for one with a gate, of which no weights are published.
  """
  if model.gate != "none" or model.replace:
    raise ValueError(
      f"gate is {model.gate!r} and replace is {model.replace}, and weights are "
      "published without"
    )

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    *modules, leaf = path
    end = _LEAVES[leaf]
    if modules[0] == "head":
      layout = layouts.DENSE if leaf == "kernel" else layouts.SAME
      return f"classifier.{end}", layout
    if modules[0] in _OUTSIDE:
      prefix, pair = "", _OUTSIDE[modules[0]]
    else:
      stage, block = (int(name.rpartition("_")[2]) for name in modules[:2])
      names = _EXPANDING if model.stages[stage][0] > 1 else _OTHERS
      prefix, pair = f"blocks.{stage}.{block}.", names[modules[2]]
    layout = layouts.SAME
    if leaf == "kernel":
      dense = modules[-2] in ("expand", "out", "final_conv")
      layout = layouts.DENSE_AS_CONV if dense else layouts.CONV
    return f"{prefix}{pair[modules[-1] == 'norm']}.{end}", layout

  return name_and_layout
