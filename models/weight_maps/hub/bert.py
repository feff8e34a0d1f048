"""Names of BERT with the head of its masked language model."""

import flax.linen as nn

from models.weight_maps import layouts
from models.weight_maps.hub import naming

_LAYER = "bert.encoder.layer.{}"
_HEAD = "cls.predictions"
_MODULES = {
  "embed": "bert.embeddings.word_embeddings",
  "position_embed": "bert.embeddings.position_embeddings",
  "token_type_embed": "bert.embeddings.token_type_embeddings",
  "embed_norm": "bert.embeddings.LayerNorm",
  "layer/mixer/query": f"{_LAYER}.attention.self.query",
  "layer/mixer/key": f"{_LAYER}.attention.self.key",
  "layer/mixer/value": f"{_LAYER}.attention.self.value",
  "layer/mixer/out": f"{_LAYER}.attention.output.dense",
  "layer/mixer_norm": f"{_LAYER}.attention.output.LayerNorm",
  "layer/mlp/expand": f"{_LAYER}.intermediate.dense",
  "layer/mlp/shrink": f"{_LAYER}.output.dense",
  "layer/mlp_norm": f"{_LAYER}.output.LayerNorm",
  "head/transform": f"{_HEAD}.transform.dense",
  "head/transform_norm": f"{_HEAD}.transform.LayerNorm",
  "head/logits": f"{_HEAD}.decoder",
  "head/logits/bias": f"{_HEAD}.bias",
}


def _weight_map(model: nn.Module) -> layouts.WeightMap:
  del model
  return naming.weight_map(_MODULES, naming.layout)


NAMING = naming.Naming(
  weight_map=_weight_map,
  base="bert.",
  head="cls.",
  # The pooler and the next sentence's logits are there to be pretrained, and
  # are not part of the masked language model.
  ignored=r"bert\.embeddings\.position_ids|bert\.pooler\..*"
  r"|cls\.seq_relationship\..*",
  twins={
    f"{_HEAD}.decoder.weight": "bert.embeddings.word_embeddings.weight",
    f"{_HEAD}.decoder.bias": f"{_HEAD}.bias",
  },
  # As files made from TensorFlow's have it.
  renamed={
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
  },
)
