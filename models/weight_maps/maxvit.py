"""MaxViT's weights under the names of timm's maxvit_*_tf models."""

from models.maxvit import MaxViT
from models.weight_maps import layouts
from models.weight_maps.layouts import Path, WeightMap

_TIMM_MODULES = {
  "stem/conv_0": "stem.conv1",
  "stem/norm_0": "stem.norm1",
  "stem/conv_1": "stem.conv2",
  "head/norm": "head.norm",
  "head/hidden": "head.pre_logits.fc",
  "head/logits": "head.fc",
  "mbconv/pre_norm": "conv.pre_norm",
  "mbconv/expand_conv": "conv.conv1_1x1",
  "mbconv/expand_norm": "conv.norm1",
  "mbconv/depthwise_conv": "conv.conv2_kxk",
  "mbconv/depthwise_norm": "conv.norm2",
  "mbconv/se/reduce": "conv.se.fc1",
  "mbconv/se/expand": "conv.se.fc2",
  "mbconv/shrink_conv": "conv.conv3_1x1",
  "mbconv/shortcut/conv": "conv.shortcut.expand",
  "attention_norm": "norm1",
  "attention/qkv": "attn.qkv",
  "attention/out": "attn.proj",
  "attention": "attn.rel_pos",
  "ffn_norm": "norm2",
  "ffn/expand": "mlp.fc1",
  "ffn/shrink": "mlp.fc2",
}
_TIMM_ATTENTION = {
  "block_attention": "attn_block",
  "grid_attention": "attn_grid",
}
_TIMM_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
  "relative_bias_table": "relative_position_bias_table",
}


def _name_and_layout(path: Path) -> tuple[str, layouts.Layout]:
  """Maps a path in MaxViT's variables to timm's maxvit_*_tf models.

  Raises:
    KeyError: if timm has no such layer, as in another layout than the paper's.
  """
  *modules, leaf = path
  prefix = []
  if modules[0].startswith("stage_"):
    stage, block, *modules = modules
    prefix = [f"stages.{stage[6:]}.blocks.{block[6:]}"]
    if modules[0] != "mbconv":
      prefix.append(_TIMM_ATTENTION[modules.pop(0)])
  module = "/".join(modules)
  name = ".".join([*prefix, _TIMM_MODULES[module], _TIMM_LEAVES[leaf]])
  return name, _maxvit_layout(module, leaf)


def _maxvit_layout(module: str, leaf: str) -> layouts.Layout:
  if module == "attention/qkv":
    return layouts.DENSE if leaf == "kernel" else layouts.FLAT
  if leaf != "kernel":
    return layouts.SAME
  if module == "attention/out":
    return layouts.DENSE_HEADS
  if module.startswith("stem/") or module == "mbconv/depthwise_conv":
    return layouts.CONV
  return (
    layouts.DENSE_AS_CONV if module.startswith("mbconv/") else layouts.DENSE
  )


def weight_map(model: MaxViT) -> WeightMap:
  """Returns the map for any MaxViT: names do not depend on its size."""
  del model
  return _name_and_layout
