"""What a trained model does inside, and what becomes of it if that is changed.

`run` applies a model, reads values by name and edits others; `list_taps` says
what there is, and `edited` makes a model that goes on with edits, as in
decoding. The modules beside are functions of values that they give.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax

from models import taps
from models.taps import Edits, Site, StatefulEdit, edited, with_given

__all__ = [
  "Edits",
  "Site",
  "StatefulEdit",
  "edited",
  "list_taps",
  "run",
  "with_given",
]


def run(
  model: nn.Module,
  variables: Mapping[str, Any],
  inputs: Any,
  *,
  read: str | Iterable[str] = (),
  edit: Edits = (),
  given: Any = None,
  **options: Any,
) -> tuple[Any, dict[str, jax.Array]]:
  """Applies a model, reads some of its values and edits others.

  Nothing is changed and nothing is kept: it is a function that can be jitted,
  differentiated and vmapped. Values that nobody asks for are not computed.

  Args:
    model: of `models.create`, or any module of which a part has taps.
    variables: its parameters and other collections.
    inputs: what it is called with: an array, a tuple of arguments, or a mapping
      of named ones.
    read: names of values, or shell patterns of them, as
      "layer_*/mixer/attention_weights".
    edit: by such patterns, arrays that take the place of values, or functions
      `edit(value, site)` that return a replacement of the same shape; see
      `models.edits`. Of several edits of a value the first is applied first.
    given: arrays that edits find as `site.given`.
    **options: of `model.apply`, as `train=True`, `rngs`, `method` or `cache`;
      models with statistics of batches need `mutable=["batch_stats"]` to train.

  Returns:
    (output, values): what the model returns, and the values by their names, as
    edited, those of a pattern in the order of layers, also under jit.

  Raises:
    ValueError: for a pattern that fits no value, with the nearest that there
      are, for inputs or an edit of another kind, and for a replacement of
      another shape or a dtype that the value's cannot hold.
  """
  args, named = _arguments(inputs)
  if given is not None:
    variables = with_given(variables, given)
  names = [read] if isinstance(read, str) else read
  return taps.read(
    model, variables, *args, names=names, edit=edit, **named, **options
  )


def list_taps(
  model: nn.Module, variables: Mapping[str, Any], inputs: Any, **options: Any
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of all values of a model, by name, without computing.

  Args:
    model: see `run`.
    variables: arrays, or their shapes.
    inputs: see `run`.
    **options: of `model.apply`.
  """
  args, named = _arguments(inputs)
  return taps.list_taps(model, variables, *args, **named, **options)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
  if isinstance(inputs, list | str):
    raise ValueError(
      f"inputs is a {type(inputs).__name__}; it must be an array, a tuple of "
      "arguments, or a mapping of named ones"
    )
  if isinstance(inputs, Mapping):
    return (), dict(inputs)
  return (inputs if isinstance(inputs, tuple) else (inputs,)), {}
