"""Light modules that weigh the features of a convolutional network, by name.

A gate is a Flax module that maps an image [batch, height, width, channels] to
one of the same shape:

    gate(x, train) -> x

A model has the name and the options in its fields, and says where gates are. To
try another, add it to GATES.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from models import layers, registry
from models.halonet_blocks import EfficientChannelAttention
from models.strip_gate import StripGate
from models.subspace_gate import SubspaceGate

GATES: dict[str, type[nn.Module]] = {
  "squeeze_excite": layers.SqueezeExcite,
  "eca": EfficientChannelAttention,
  "ela": StripGate,
  "ulsam": SubspaceGate,
}


def maker(
  gate: str, options: Mapping[str, Any], dtypes: Mapping[str, Any]
) -> functools.partial | None:
  """Returns what makes a gate, given a name; None for "none".

  Args:
    gate: a key of GATES, or "none".
    options: fields of it.
    dtypes: dtype and param_dtype.

  Raises:
    ValueError: if there is no such gate or it has no such option.
  """
  if gate == "none":
    if options:
      raise ValueError(
        f"gate is 'none', which has no options, and gate_options is "
        f"{dict(options)}"
      )
    return None
  if gate not in GATES:
    raise registry.unknown("gate", gate, (*GATES, "none"))
  cls = GATES[gate]
  known = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
  for option in options:
    if option not in known:
      raise registry.unknown(f"option of gate={gate!r}", option, known)
  offered = {key: value for key, value in dtypes.items() if key in known}
  return functools.partial(cls, **{**offered, **options})
