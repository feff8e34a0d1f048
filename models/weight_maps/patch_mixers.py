"""ViT's and MLP-Mixer's weights as timm names them, NiNformer's as released."""

from models.patch_mixers import PatchMixer
from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

_LEAVES = {"kernel": "weight", "scale": "weight"}
# Of each mixer the names of modules in a block, and of those outside.
_BLOCK = {
  "attention": {
    "norm": "norm1",
    "mixer/qkv": "attn.qkv",
    "mixer/out": "attn.proj",
    "ffn_norm": "norm2",
    "ffn/expand": "mlp.fc1",
    "ffn/shrink": "mlp.fc2",
  },
  "mlp": {
    "norm": "norm1",
    "mixer/tokens/expand": "mlp_tokens.fc1",
    "mixer/tokens/shrink": "mlp_tokens.fc2",
    "ffn_norm": "norm2",
    "ffn/expand": "mlp_channels.fc1",
    "ffn/shrink": "mlp_channels.fc2",
  },
  "ninformer": {
    "norm": "norm",
    "mixer/project": "mgu.proj",
    "mixer/gate/norm": "mgu.Mixer.token_mix.0",
    "mixer/gate/mixer/tokens/expand": "mgu.Mixer.token_mix.2.net.0",
    "mixer/gate/mixer/tokens/shrink": "mgu.Mixer.token_mix.2.net.3",
    "mixer/gate/ffn_norm": "mgu.Mixer.channel_mix.0",
    "mixer/gate/ffn/expand": "mgu.Mixer.channel_mix.1.net.0",
    "mixer/gate/ffn/shrink": "mgu.Mixer.channel_mix.1.net.3",
    "ffn/expand": "ffn.net.0",
    "ffn/shrink": "ffn.net.3",
  },
}
_OUTSIDE = {
  "attention": {
    "embed/conv": "patch_embed.proj",
    "embed_norm": "norm_pre",
    "final_norm": "norm",
    "head/logits": "head",
  },
  "mlp": {
    "embed/conv": "stem.proj",
    "final_norm": "norm",
    "head/logits": "head",
  },
  "ninformer": {"embed/conv": "patcher", "head/logits": "classifier"},
}
_SINGLE = {"class_token": "cls_token", "position": "pos_embed"}
# Theirs have leading axes of one.
_TOKEN = Layout(
  shape=lambda shape: (1, 1, *shape),
  load=lambda tensor, shape: tensor.reshape(shape),
  store=lambda array: array[None, None],
)
_POSITION = Layout(
  shape=lambda shape: (1, *shape),
  load=lambda tensor, shape: tensor.reshape(shape),
  store=lambda array: array[None],
)


def weight_map(model: PatchMixer) -> WeightMap:
  """Returns the map for a network on patches; names depend on its mixer."""
  inside, outside = _BLOCK[model.mixer], _OUTSIDE[model.mixer]
  blocks = "model" if model.mixer == "ninformer" else "blocks"

  def name(path: Path) -> str:
    *modules, leaf = path
    if leaf in _SINGLE:
      return _SINGLE[leaf]
    if modules[0].startswith("block_"):
      number = modules[0].removeprefix("block_")
      module = f"{blocks}.{number}.{inside['/'.join(modules[1:])]}"
    else:
      module = outside["/".join(modules)]
    return f"{module}.{_LEAVES.get(leaf, leaf)}"

  return lambda path: (name(path), _layout(path))


def _layout(path: Path) -> Layout:
  module, leaf = path[-2:]
  if leaf in _SINGLE:
    return _TOKEN if leaf == "class_token" else _POSITION
  if module == "qkv" and leaf == "bias":
    return layouts.FLAT
  if leaf != "kernel":
    return layouts.SAME
  if module == "conv":
    return layouts.CONV
  return layouts.DENSE_HEADS if module == "out" else layouts.DENSE
