"""The seam through which attention enters a transformer: mixers, by name.

A sequence mixer is a `mixer_base.SequenceMixer`, a Flax module that maps
[batch, length, width], positions, segments and a cache to an array of the same
shape and the new cache. A transformer names the mixers it wants and offers what
it knows (heads, window, dtypes); each takes what it has fields for. To try
another mechanism, add it to SEQUENCE_MIXERS.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from models import registry
from models.convolution_mixer import GatedConvolution
from models.flow_mixer import FlowAttention
from models.hierarchical_mixer import HierarchicalAttention
from models.linear_mixer import LinearAttention
from models.mixer_base import SequenceMixer
from models.routed_mixer import RoutedAttention
from models.softmax_mixers import FullAttention, SlidingAttention

SEQUENCE_MIXERS: dict[str, type[SequenceMixer]] = {
  "full": FullAttention,
  "sliding": SlidingAttention,
  "linear": LinearAttention,
  "flow": FlowAttention,
  "convolution": GatedConvolution,
  "hierarchical": HierarchicalAttention,
  "routed": RoutedAttention,
}
# Fields of a transformer that are offered to its mixers as they are.
OFFERED = (
  "heads",
  "kv_heads",
  "window",
  "causal",
  "position_encoding",
  "rotary",
  "output_gate",
  "gate_position",
  "gate_activation",
  "gate_operation",
  "attention_bias",
  "out_bias",
  "attention_scale",
  "attention_soft_cap",
  "implementation",
)


def find(mixer: str) -> type[SequenceMixer]:
  """Returns the class of a mixer.

  Layers of one mixer may have options of their own by a label after its name,
  as "full/sparse", which `mixer_options` of a transformer know them by.

  Raises:
    ValueError: if there is no such mixer.
  """
  name = mixer.partition("/")[0]
  if name not in SEQUENCE_MIXERS:
    raise registry.unknown("sequence mixer", name, SEQUENCE_MIXERS)
  return SEQUENCE_MIXERS[name]


def create(
  mixer: str,
  offered: Mapping[str, Any],
  options: Mapping[str, Any] | None = None,
  **module: Any,
) -> SequenceMixer:
  """Returns the mixer `mixer` with what it takes of what is offered.

  Args:
    mixer: a key of SEQUENCE_MIXERS, or one and a label; see `find`.
    offered: what the transformer knows; what the mixer has no field for is left
      out.
    options: fields of this mixer, which come before what is offered.
    **module: `name` and `parent`, as any Flax module has.

  Raises:
    ValueError: if there is no such mixer, or it has no field for an option.
  """
  cls = find(mixer)
  fields = {field.name for field in dataclasses.fields(cls)}
  fields -= {"name", "parent"}
  options = {} if options is None else options
  for option in options:
    if option not in fields:
      raise registry.unknown(f"option of the mixer {mixer!r}", option, fields)
  taken = {key: value for key, value in offered.items() if key in fields}
  return cls(**{**taken, **options}, **module)
