"""Names of ModernBERT with the head of its masked language model."""

import flax.linen as nn

from models.weight_maps import layouts
from models.weight_maps.hub import naming

_LAYER = "model.layers.{}"
_MODULES = {
  "embed": "model.embeddings.tok_embeddings",
  "embed_norm": "model.embeddings.norm",
  "final_norm": "model.final_norm",
  "layer/mixer_norm": f"{_LAYER}.attn_norm",
  "layer/mixer/query": f"{_LAYER}.attn.Wqkv",
  "layer/mixer/key": f"{_LAYER}.attn.Wqkv",
  "layer/mixer/value": f"{_LAYER}.attn.Wqkv",
  "layer/mixer/out": f"{_LAYER}.attn.Wo",
  "layer/mlp_norm": f"{_LAYER}.mlp_norm",
  "layer/mlp/gate": f"{_LAYER}.mlp.Wi",
  "layer/mlp/expand": f"{_LAYER}.mlp.Wi",
  "layer/mlp/shrink": f"{_LAYER}.mlp.Wo",
  "head/transform": "head.dense",
  "head/transform_norm": "head.norm",
  "head/logits": "decoder",
}
# What shares a tensor, in the order in which it does.
_SHARED = (naming.INTO_HEADS, ("layer/mlp/gate", "layer/mlp/expand"))


def _layout(module: str, leaf: str) -> layouts.Layout:
  found = naming.layout(module, leaf)
  for parts in _SHARED:
    if module in parts:
      return found.part_of(parts.index(module), len(parts))
  return found


def _weight_map(model: nn.Module) -> layouts.WeightMap:
  del model
  return naming.weight_map(_MODULES, _layout)


NAMING = naming.Naming(
  weight_map=_weight_map,
  base="model.",
  head=("head.", "decoder."),
  ignored=r".*\.rotary_emb\..*inv_freq",
  twins={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
