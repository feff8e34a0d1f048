"""Names of LLaVA: those of Llama and CLIP behind prefixes, which have changed.

CLIP has queries, keys and values apart, which are one kernel of ours.
"""

import dataclasses
import re
from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from models.weight_maps import layouts
from models.weight_maps.hub import llama
from models.weight_maps.layouts import Layout, Path, WeightMap

_VISION = "vision_tower"
_BLOCK = f"{_VISION}.encoder.layers.{{}}"
_MODULES = {
  "embed/conv": f"{_VISION}.embeddings.patch_embedding",
  "embed_norm": f"{_VISION}.pre_layrnorm",  # Theirs is spelled so.
  "block/norm": f"{_BLOCK}.layer_norm1",
  "block/mixer/qkv": f"{_BLOCK}.self_attn.qkv_proj",
  "block/mixer/out": f"{_BLOCK}.self_attn.out_proj",
  "block/ffn_norm": f"{_BLOCK}.layer_norm2",
  "block/ffn/expand": f"{_BLOCK}.mlp.fc1",
  "block/ffn/shrink": f"{_BLOCK}.mlp.fc2",
}
_SINGLE = {
  "class_token": f"{_VISION}.embeddings.class_embedding",
  "position": f"{_VISION}.embeddings.position_embedding.weight",
}
_PROJECTOR = {
  "expand": "multi_modal_projector.linear_1",
  "shrink": "multi_modal_projector.linear_2",
}
# What names began with over the years, and what we call it.
_PREFIXES = (
  (r"(language_model\.)?lm_head\.", "lm_head."),
  (r"(model\.)?language_model\.(model\.)?", "language_model."),
  (r"(model\.)?vision_tower\.(vision_model\.)?", f"{_VISION}."),
  (r"(model\.)?multi_modal_projector\.", "multi_modal_projector."),
)
# The norm of features that LLaVA does not read, and a buffer.
_IGNORED = re.compile(
  rf"{_VISION}\.(post_layernorm\..*|embeddings\.position_ids)"
  r"|.*\.rotary_emb\.inv_freq"
)
_QUERY = re.compile(r"(.*\.self_attn\.)q_proj(\.(?:weight|bias))")


@dataclasses.dataclass(frozen=True)
class Naming:
  """As `naming.Naming`, for files with a ViT beside the language model."""

  def weight_map(self, model: nn.Module) -> WeightMap:
    """Returns the map for a model."""
    language = llama.NAMING.weight_map(model)

    def name_and_layout(path: Path) -> tuple[str, Layout]:
      if path[0] == "vision_trunk":
        return _of_vision(path[1:])
      if path[0] == "image_projector":
        leaf = "weight" if path[2] == "kernel" else path[2]
        layout = layouts.DENSE if leaf == "weight" else layouts.SAME
        return f"{_PROJECTOR[path[1]]}.{leaf}", layout
      name, layout = language(path)
      return re.sub(r"^model\.", "language_model.", name), layout

    return name_and_layout

  def normalise(
    self, tensors: Mapping[str, np.ndarray], tied: bool
  ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Names tensors as the map does, queries, keys and values together.

    Args:
      tensors: {name: tensor} of the files.
      tied: whether the head is the embedding.

    Returns:
      The tensors, and remarks on a head that differs from what it is tied to.
    """
    named = {_present(name): tensor for name, tensor in tensors.items()}
    named = {k: v for k, v in named.items() if not _IGNORED.fullmatch(k)}
    for name in list(named):
      if not name.startswith(_VISION) or not (match := _QUERY.fullmatch(name)):
        continue
      before, after = match.groups()
      parts = [f"{before}{letter}_proj{after}" for letter in "qkv"]
      if all(part in named for part in parts):
        joined = np.concatenate([named.pop(part) for part in parts])
        named[f"{before}qkv_proj{after}"] = joined
    head, first = "lm_head.weight", "language_model.embed_tokens.weight"
    remarks = {}
    if tied and head in named and first in named:
      if np.array_equal(named[head], named[first]):
        del named[head]
      else:
        remarks[head] = f", which config.json ties to {first}, and differs"
    return named, remarks


def _present(name: str) -> str:
  for pattern, prefix in _PREFIXES:
    if match := re.match(pattern, name):
      return prefix + name[match.end() :]
  return name


def _of_vision(path: Path) -> tuple[str, Layout]:
  *names, leaf = path
  if leaf in _SINGLE:
    return _SINGLE[leaf], layouts.SAME
  index = ""
  if names[0].startswith("block_"):
    index = names[0].removeprefix("block_")
    names[0] = "block"
  name = _MODULES["/".join(names)].format(index)
  if leaf == "bias":
    layout = layouts.FLAT if names[-1] == "qkv" else layouts.SAME
    return f"{name}.bias", layout
  layout = layouts.SAME
  if leaf == "kernel":
    known = {"conv": layouts.CONV, "out": layouts.DENSE_HEADS}
    layout = known.get(names[-1], layouts.DENSE)
  return f"{name}.weight", layout


NAMING = Naming()
