"""LINA's weights under the names of the authors' modules.

Those of github.com/techmonsterwang/LINA at f13f7c39, which are NOVA's: a file
"diffusion_pytorch_model" has them as they are here. Their image encoder is our
encoder and decoder, one list of blocks.
"""

from models.lina import Lina
from models.lina_attention import GATE_LEAVES
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

_MODULES = {
  "label_embed": "label_embed",
  "label_embed/norm": "label_embed.norm",
  "text_embed": "text_embed",
  "text_embed/proj": "text_embed.proj",
  "text_embed/norm": "text_embed.norm",
  "connector": "mask_embed",
  "connector/position/mlp/expand": "video_pos_embed.time_proj.0",
  "connector/position/mlp/shrink": "video_pos_embed.time_proj.2",
  "connector/position/norm": "video_pos_embed.norm",
  "connector/patch_embed": "video_encoder.patch_embed.proj",
  "connector/norm": "video_encoder.norm",
  "": "mask_embed",
  "patch_embed": "image_encoder.patch_embed.proj",
  "norm": "image_encoder.norm",
  "flow_head/patch_embed": "image_decoder.patch_embed.proj",
  "flow_head/time/expand": "image_decoder.time_cond_embed.timestep_proj.fc1",
  "flow_head/time/shrink": "image_decoder.time_cond_embed.timestep_proj.fc2",
  "flow_head/condition/expand": (
    "image_decoder.time_cond_embed.condition_proj.fc1"
  ),
  "flow_head/condition/shrink": (
    "image_decoder.time_cond_embed.condition_proj.fc2"
  ),
  "flow_head/modulation": "image_decoder.norm.proj",
  "flow_head/out": "image_decoder.head",
}
_FLOW_BLOCK = {
  "modulation": "norm1.proj",
  "mlp/expand": "proj.fc1",
  "mlp/shrink": "proj.fc2",
  "norm": "norm2",
}
_BLOCK = {
  "attention": "attn",
  "attention/out": "attn.proj",
  "attention/convolution": "attn.dw_conv",
  # Of gates that are made of the tokens.
  "attention/key_gate": "attn.key_gate",
  "attention/value_gate": "attn.value_gate",
  "attention_norm": "norm1",
  "mlp/expand": "mlp.fc1",
  "mlp/shrink": "mlp.fc2",
  "mlp_norm": "norm2",
}
# Their tensor, and the place in it; by normalizer, as InLine's have two.
_FUSED = {"query": ("qkv", 0, 3), "key": ("qkv", 1, 3), "value": ("qkv", 2, 3)}
_SPLIT = {"query": ("q", 0, 1), "key": ("kv", 0, 2), "value": ("kv", 1, 2)}
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "embedding": "weight",
  "padding": "weight",
  "first_token": "bos_token",
  "key_gate": "key_scale",
  "value_gate": "value_scale",
}
_SPLIT_GATES = {"key_gate": "key_scale_gamma", "weight_gate": "key_scale_tau"}
# Ours is [tokens, heads], theirs [1, heads, tokens, 1].
_GATE = Layout(
  shape=lambda shape: (1, shape[1], shape[0], 1),
  load=lambda tensor, shape: tensor[0, :, :, 0].T,
  store=lambda array: array.T[None, :, :, None],
)


def weight_map(model: Lina) -> WeightMap:
  """Returns the map for a LINA; names depend on normalizer, gate and depth."""
  inputs = _SPLIT if model.normalizer == "subtraction" else _FUSED
  if model.attention == "softmax":
    inputs = _FUSED
  leaves = _LEAVES | (_SPLIT_GATES if model.gate == "split" else {})

  def name_and_layout(path: Path) -> tuple[str, Layout]:
    *modules, leaf = path
    module, prefix = "/".join(modules), ""
    names = _MODULES
    if "block_" in module:
      prefix, module, names = _in_block(modules, model.encoder_layers)
    into_heads = module.rpartition("/")[2]
    if names is _BLOCK and into_heads in inputs:
      name, index, count = inputs[into_heads]
      layout = layouts.DENSE if leaf == "kernel" else layouts.FLAT
      return (
        f"{prefix}attn.{name}.{leaves.get(leaf, leaf)}",
        layout.part_of(index, count),
      )
    name = f"{prefix}{names[module]}.{leaves.get(leaf, leaf)}"
    return name, _layout(model, module, leaf)

  return name_and_layout


def _in_block(
  modules: list[str], encoder_layers: int
) -> tuple[str, str, dict[str, str]]:
  """Returns the prefix of a block, the path within it, and the names there."""
  at = next(i for i, m in enumerate(modules) if m.startswith("block_"))
  index, module = int(modules[at][6:]), "/".join(modules[at + 1 :])
  if modules[0] == "flow_head":
    return f"image_decoder.blocks.{index}.", module, _FLOW_BLOCK
  if modules[0] == "connector":
    return f"video_encoder.blocks.{index}.", module, _BLOCK
  if modules[0] == "decoder":
    index += encoder_layers
  return f"image_encoder.blocks.{index}.", module, _BLOCK


def _layout(model: Lina, module: str, leaf: str) -> Layout:
  if leaf in GATE_LEAVES:
    return _GATE
  if leaf != "kernel":
    return layouts.SAME
  if module == "attention/convolution":
    return layouts.CONV
  if module.endswith("patch_embed"):
    before = 2 if module.startswith("connector") else 1
    return _patches(before * model.patch_size)
  return layouts.DENSE


def _patches(side: int) -> Layout:
  """A dense layer of patches, rows first and channels last, as convolution."""

  def shape(ours):
    return (ours[1], ours[0] // side**2, side, side)

  return Layout(
    shape=shape,
    load=lambda tensor, ours: tensor.transpose(2, 3, 1, 0).reshape(ours),
    store=lambda array: array.reshape(
      side, side, array.shape[0] // side**2, array.shape[1]
    ).transpose(3, 2, 0, 1),
  )
