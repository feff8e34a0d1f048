"""Attention over a grid of tokens, by name: how queries and keys meet.

An attend is a function

    attend(module, q, k, v, layout, *, lengths=None, **options) -> out

of queries `[batch, queries, heads, dim]`, keys and values `[batch, keys, heads,
dim]` after norms and rotary positions, and the `Layout` of the tokens; `out` is
like the queries. It has no projections. `lengths` are integers [batch], how
many of the keys are real where texts are padded, or None if all are.

`module` is the Flax module that it is a part of: parameters of its own are
`module.param`, maps leave by `models.taps`, and `module.implementation` says
which kernels run. What goes from one step of sampling to the next is
`module.variable(STATE, name, ...)`; who calls the model without a state in
`mutable` wants none, so ask `module.is_mutable_collection(STATE)` before
writing. To add an attend, write a file and add it to ATTENDS; a model takes it
by `attend=name, attend_options={...}`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from models import registry
from models.attends.flow import flow
from models.attends.full import full
from models.attends.inward_window import inward_window
from models.attends.kept import kept
from models.attends.layout import STATE, Layout
from models.attends.naive import naive
from models.attends.pyramid import pyramid
from models.attends.radial import radial
from models.attends.regional import regional
from models.attends.reshaped_window import reshaped_window
from models.attends.scale_dit import scale_dit

__all__ = ["ATTENDS", "STATE", "Layout", "check", "find"]

ATTENDS: dict[str, Callable[..., jax.Array]] = {
  "flow": flow,
  "full": full,
  "inward_window": inward_window,
  "kept": kept,
  "naive": naive,
  "pyramid": pyramid,
  "radial": radial,
  "reshaped_window": reshaped_window,
  "scale_dit": scale_dit,
  "regional": regional,
}
_ARGUMENTS = ("module", "q", "k", "v", "layout", "lengths")
_OF_A_TEXT = "its keys are a text's, as many as in training"
# Why an attend has no `scale_by`, see `models.attends.scaling`.
_NOT_SCALED = {
  "flow": "it is linear in the keys and has no scores",
  "kept": _OF_A_TEXT,
  "regional": _OF_A_TEXT,
}


def find(name: str, field: str = "attend") -> Callable[..., jax.Array]:
  """Returns the function that ATTENDS has under `name`.

  Raises:
    ValueError: if there is none.
  """
  if name not in ATTENDS:
    raise registry.unknown(field, name, ATTENDS)
  return ATTENDS[name]


def check(
  field: str, name: str, options: Mapping[str, Any], *, padded: bool = False
) -> None:
  """Raises ValueError for an attend that is not there, or cannot take a call.

  Args:
    field: the field of the model that names it, as "attend".
    name: the name.
    options: its options.
    padded: whether there are `lengths`.
  """
  known = inspect.signature(find(name, field)).parameters
  if "scale_by" in options and name in _NOT_SCALED:
    able = [other for other in ATTENDS if other not in _NOT_SCALED]
    raise ValueError(
      f"{field} is {name!r}, which takes no scale_by: {_NOT_SCALED[name]}; "
      f"those that take it are {able}"
    )
  for option in options:
    if option not in known or option in _ARGUMENTS:
      own = set(known) - set(_ARGUMENTS)
      raise registry.unknown(f"option of {field}={name!r}", option, own)
  if padded and "lengths" not in known:
    able = [
      other
      for other, attend in ATTENDS.items()
      if "lengths" in inspect.signature(attend).parameters
    ]
    raise ValueError(
      f"text_length is given, and {field} is {name!r}, which takes no padded "
      f"keys; those that do are {able}"
    )
