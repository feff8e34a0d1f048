"""Names for Sigma (arXiv 2501.13629), whose own are not known to us.

No checkpoint and no code of the released models is at hand: these are Llama's
names, with three heads of their own sizes, and names of ours for what lies
before the queries. They are unverified, so no `model_type` is read with them;
who has a file gives its names.
"""

from collections.abc import Mapping

import flax.linen as nn
from flax.core import FrozenDict

from models.weight_maps import layouts
from models.weight_maps.hub import llama, naming

_QUERIES = {
  "layer/mixer/query_expand": "model.layers.{}.self_attn.q_up_proj",
  "layer/mixer/query_gate": "model.layers.{}.self_attn.q_gate_proj",
}


def weight_map(
  model: nn.Module, names: Mapping[str, str] = FrozenDict()
) -> layouts.WeightMap:
  """Returns the map for `pretrained.from_tensors` and `to_tensors`.

  Args:
    model: a Transformer with the names of `full` layers.
    names: names of modules that a file has otherwise, by our path, as
      {"layer/mixer/query_expand": "model.layers.{}.attn.wq_a"}.

  Raises:
    ValueError: if a path of `names` is none of ours.
  """
  del model
  modules = {**llama.MODULES, **_QUERIES}
  for path in names:
    if path not in modules:
      raise ValueError(
        f"names has {path!r}; paths of modules are {sorted(modules)}"
      )
  return naming.weight_map({**modules, **names}, naming.layout)
