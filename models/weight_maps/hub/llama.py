"""Names of Llama, Qwen3, Qwen3-Next and Gemma 2."""

import flax.linen as nn

from models.weight_maps import layouts
from models.weight_maps.hub import gated_attention, naming

_LAYER = "model.layers.{}"
MODULES = {
  "embed": "model.embed_tokens",
  "final_norm": "model.norm",
  "head/logits": "lm_head",
  "layer/mixer_norm": f"{_LAYER}.input_layernorm",
  "layer/mixer/query": f"{_LAYER}.self_attn.q_proj",
  "layer/mixer/gate": f"{_LAYER}.self_attn.q_proj",
  "layer/mixer/key": f"{_LAYER}.self_attn.k_proj",
  "layer/mixer/value": f"{_LAYER}.self_attn.v_proj",
  "layer/mixer/out": f"{_LAYER}.self_attn.o_proj",
  "layer/mixer/query_norm": f"{_LAYER}.self_attn.q_norm",
  "layer/mixer/key_norm": f"{_LAYER}.self_attn.k_norm",
  "layer/mlp_norm": f"{_LAYER}.post_attention_layernorm",
  "layer/mlp/gate": f"{_LAYER}.mlp.gate_proj",
  "layer/mlp/expand": f"{_LAYER}.mlp.up_proj",
  "layer/mlp/shrink": f"{_LAYER}.mlp.down_proj",
}
# Gemma 2's second name is that of another norm than Llama's.
_SANDWICH = {
  "layer/mixer_post_norm": f"{_LAYER}.post_attention_layernorm",
  "layer/mlp_norm": f"{_LAYER}.pre_feedforward_layernorm",
  "layer/mlp_post_norm": f"{_LAYER}.post_feedforward_layernorm",
}


def _weight_map(model: nn.Module) -> layouts.WeightMap:
  sandwich = model.norm_placement == "sandwich"
  modules = {**MODULES, **(_SANDWICH if sandwich else {})}

  def layout(module: str, leaf: str) -> layouts.Layout:
    found = naming.layout(module, leaf)
    name = module.removeprefix("layer/mixer/")
    head_dim = model.head_dim or model.width // model.heads
    return gated_attention.part(
      found, name, model.output_gate, head_dim, model.heads
    )

  return naming.weight_map(modules, layout)


NAMING = naming.Naming(
  weight_map=_weight_map,
  base="model.",
  head="lm_head.",
  ignored=r".*\.rotary_emb\.inv_freq",
  twins={"lm_head.weight": "model.embed_tokens.weight"},
)
