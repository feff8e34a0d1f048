"""Names of a layer of gated attention: Qwen3-Next's and the paper's.

fields = decoders.qwen3_next_attention(Options(config))
mixer = sequence_mixers.create("full", fields)
variables = pretrained.from_tensors(
  tensors,
  mixer,
  init=lambda key: mixer.init(key, x),
  weight_map=gated_attention.weight_map(mixer),
)
"""

from typing import Any

from models import registry
from models.weight_maps import layouts
from models.weight_maps.hub import naming

_NAMES = {
  "query": "q_proj",
  "gate": "q_proj",
  "key": "k_proj",
  "value": "v_proj",
  "out": "o_proj",
  "query_norm": "q_norm",
  "key_norm": "k_norm",
}
_IN_ONE = ("query", "gate")
ORDERS = ("heads", "groups")


def weight_map(mixer: Any, order: str = "heads") -> layouts.WeightMap:
  """Returns the map for the tensors of one layer, as "q_proj.weight".

  Args:
    mixer: a `softmax_mixers.FullAttention` with a gate of its output.
    order: of queries and gates in q_proj: "heads", of each head first one, then
      the other, as Qwen3-Next has them; or "groups", of all heads that share a
      head of keys, as the repository of arXiv 2505.06708 has them.

  Raises:
    ValueError: if there is no such order.
  """
  if order not in ORDERS:
    raise registry.unknown("order", order, ORDERS)
  blocks = mixer.heads
  if order == "groups":
    blocks = mixer.kv_heads or mixer.heads

  def name_and_layout(path: layouts.Path) -> tuple[str, layouts.Layout]:
    module, leaf = path
    found = naming.layout(f"layer/mixer/{module}", leaf)
    ending = "bias" if leaf == "bias" else "weight"
    found = part(found, module, mixer.output_gate, mixer.head_dim, blocks)
    return f"{_NAMES[module]}.{ending}", found

  return name_and_layout


def part(
  found: layouts.Layout, module: str, gate: str, head_dim: int, blocks: int
) -> layouts.Layout:
  """Returns the layout of what may be in one tensor with something else.

  Args:
    found: the layout of the tensor.
    module: name of a module of the mixer.
    gate: the mixer's `output_gate`.
    head_dim: channels of a query.
    blocks: how often queries and gates follow one another.
  """
  if gate == "none" or module not in _IN_ONE:
    return found
  shares = (head_dim, 1) if gate == "headwise" else ()
  return found.part_of(_IN_ONE.index(module), 2, blocks=blocks, shares=shares)
