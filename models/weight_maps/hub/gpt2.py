"""Names of GPT-2, whose kernels are not transposed as PyTorch's are."""

import flax.linen as nn

from models.weight_maps import layouts
from models.weight_maps.hub import naming

_LAYER = "transformer.h.{}"
_MODULES = {
  "embed": "transformer.wte",
  "position_embed": "transformer.wpe",
  "final_norm": "transformer.ln_f",
  "head/logits": "lm_head",
  "layer/mixer_norm": f"{_LAYER}.ln_1",
  "layer/mixer/query": f"{_LAYER}.attn.c_attn",
  "layer/mixer/key": f"{_LAYER}.attn.c_attn",
  "layer/mixer/value": f"{_LAYER}.attn.c_attn",
  "layer/mixer/out": f"{_LAYER}.attn.c_proj",
  "layer/mlp_norm": f"{_LAYER}.ln_2",
  "layer/mlp/expand": f"{_LAYER}.mlp.c_fc",
  "layer/mlp/shrink": f"{_LAYER}.mlp.c_proj",
}


def _layout(module: str, leaf: str) -> layouts.Layout:
  if module == "head/logits":
    return layouts.DENSE
  if module in naming.INTO_HEADS:
    kernel = leaf == "kernel"
    found = layouts.untransposed(inputs=1) if kernel else layouts.FLAT
    index = naming.INTO_HEADS.index(module)
    return found.part_of(index, 3, axis=int(kernel))
  if module == "layer/mixer/out" and leaf == "kernel":
    return layouts.untransposed(inputs=2)
  return layouts.SAME


def _weight_map(model: nn.Module) -> layouts.WeightMap:
  del model
  return naming.weight_map(_MODULES, _layout)


NAMING = naming.Naming(
  weight_map=_weight_map,
  base="transformer.",
  head="lm_head.",
  ignored=r".*\.attn\.(masked_)?bias",
  twins={"lm_head.weight": "transformer.wte.weight"},
)
