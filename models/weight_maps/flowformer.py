"""Flowformer's weights, by the names of its released code."""

import flax.linen as nn

from models.weight_maps import layouts
from models.weight_maps.layouts import Layout, Path, WeightMap

_BLOCK_MODULES = {
  "attention_norm": "norm1",
  "attention/qkv": "attn.qkv",
  "attention/out": "attn.proj",
  "ffn_norm": "norm2",
  "expand": "mlp.fc1",
  "shrink": "mlp.fc2",
}
_MODULES = {"head/norm": "norm", "head/logits": "head"}
_LEAVES = {"kernel": "weight", "scale": "weight"}
# Ours is [rows, columns, width], theirs [1, rows * columns, width].
_POSITION = Layout(
  shape=lambda shape: (1, shape[0] * shape[1], shape[2]),
  load=lambda tensor, shape: tensor.reshape(shape),
  store=lambda array: array.reshape(1, -1, array.shape[-1]),
)


def weight_map(model: nn.Module) -> WeightMap:
  """Returns the map for any Flowformer of images."""
  del model
  return lambda path: (_name(path), _layout(path))


def _name(path: Path) -> str:
  """As "blocks.2.0.attn.qkv.weight" and "patch_embed.1.proj.bias"."""
  if path == ("stem", "position"):
    return "pos_embed"
  *modules, leaf = path
  end = _LEAVES.get(leaf, leaf)
  if modules[0] == "stem":
    return f"patch_embed.0.proj.{end}"
  if modules[0] == "head":
    return f"{_MODULES['/'.join(modules)]}.{end}"
  stage, block = (name.rpartition("_")[2] for name in modules[:2])
  if modules[2:] == ["merge"]:
    return f"patch_embed.{stage}.proj.{end}"
  if leaf == "ffn_layer_scale":
    return f"blocks.{stage}.{block}.gamma"
  return f"blocks.{stage}.{block}.{_BLOCK_MODULES['/'.join(modules[2:])]}.{end}"


def _layout(path: Path) -> Layout:
  module, leaf = path[-2:]
  if leaf == "position":
    return _POSITION
  if module == "qkv" and leaf == "bias":
    return layouts.FLAT
  if leaf != "kernel":
    return layouts.SAME
  if module in ("conv", "merge"):
    return layouts.CONV
  return layouts.DENSE_HEADS if module == "out" else layouts.DENSE
