"""How values leave a model by name, and how others take their place.

A module hands a value to `tap`, and an attention its map to `with_open_map`.
Nothing is computed for them until somebody calls `read`, and then for the names
that are asked for only: attention whose map nobody sees stays in one piece.

Beneath are collections of Flax's. In "readings" stand the values that are
wanted, each by a number that the value takes the place of; in "replacements"
the arrays that take the place of values, and "replaced" says in which of
scanned layers; "tap_names" lists what there is. And Flax's own way, to have all
values at once of `mutable=["intermediates"]`, goes too.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from models import insertion, registry

# What a transform over layers, as `nn.scan`, has to lift, with the layers as
# the first axis.
COLLECTIONS = (
  "intermediates",
  "readings",
  "replacements",
  "replaced",
  "tap_names",
)

# The path of a value, and the number of its layer among those of a scan.
_Place = tuple[str, tuple[int, ...]]


def read(
  model: nn.Module,
  variables: Mapping[str, Any],
  *inputs: Any,
  names: Iterable[str] = (),
  replacements: Mapping[str, jax.Array] | None = None,
  **options: Any,
) -> tuple[Any, dict[str, jax.Array]]:
  """Applies a model, reads some of its values and replaces others.

  It can be jitted, and differentiated by inputs, variables and replacements.

  Args:
    model: any module of which a part uses taps.
    variables: its parameters and other collections.
    *inputs: what the model is called with.
    names: paths of values, as "stage_0/block_1/hidden_state", or shell patterns
      of them, as "*/attention_weights". Those of scanned layers end with the
      number of the layer, as "layers/hidden_state/3".
    replacements: arrays by the names of the values whose place they take, with
      the shapes of these.
    **options: of `model.apply`, as `train=True`, `method` or `rngs`; but for
      `mutable`.

  Returns:
    (output, values): what `model.apply` returns, and the values by their names.
    A value that is replaced is read as its replacement.

  Raises:
    ValueError: for a name or replacement that fits no value, with the nearest
      that there are, and for a replacement of another shape.
  """
  known = _known(model, variables, inputs, options)
  _check_replacements(variables, known)
  places = _places(known)
  wanted = {}
  for name in names:
    matches = fnmatch.filter(places, name)
    if not matches:
      raise registry.unknown("tap", name, places)
    wanted |= {match: places[match] for match in matches}
  # Of scanned layers all are read, for they are one program.
  readings = {path: jnp.zeros(known[path]) for path, _ in wanted.values()}
  variables = {**variables, "readings": _nest(readings)}
  if replacements:
    variables |= _replace(replacements, places, known)
  # Past `Tapped.apply`, which would look for mistakes once more.
  output, state = _apply(
    model, variables, *inputs, **options, mutable=["readings"]
  )
  values = _flatten(state.get("readings", {}))
  return output, {n: values[path][index] for n, (path, index) in wanted.items()}


def list_names(
  model: nn.Module, variables: Mapping[str, Any], *inputs: Any, **options: Any
) -> list[str]:
  """The names of all values that `read` gives for the same arguments."""
  return sorted(_places(_known(model, variables, inputs, options)))


class Tapped(nn.Module):
  """A model, of which values are read and replaced, and that takes inserts.

  Its `apply` refuses replacements that fit none of its values.

  Attributes:
    inserts: modules that are put at places of it, see `models.insertion`.
  """

  inserts: tuple[Any, ...] = dataclasses.field(default=(), kw_only=True)

  # Not a method that runs within the model: Flax shall leave it as it is.
  @nn.nowrap
  def apply(self, variables, *args, **options):
    """Does as Flax's.

    Raises:
      ValueError: for "replacements" at paths where there is no value, and for
        inserts that cannot be.
    """
    if "replacements" in variables:
      known = _known(self, variables, args, options)
      _check_replacements(variables, known)
    with insertion.inserted(self.inserts):
      return super().apply(variables, *args, **options)

  @nn.nowrap
  def init_with_output(self, *args, **options):
    """Does as Flax's, with inserts; `init` is made of it."""
    with insertion.inserted(self.inserts):
      return super().init_with_output(*args, **options)


def tap(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
  """Lets the caller of `apply` read or replace the value `name` of `module`.

  Raises:
    ValueError: if the replacement has another shape.
  """
  _announce(module, name)
  if module.has_variable("replacements", name):
    replacement = module.get_variable("replacements", name)
    if replacement.shape != value.shape:
      path = "/".join((*module.path, name))
      raise ValueError(
        f"replacements: {path} has shape {replacement.shape}; it must have "
        f"shape {value.shape}"
      )
    replacement = replacement.astype(value.dtype)
    if module.has_variable("replaced", name):
      here = module.get_variable("replaced", name)
      replacement = jnp.where(here, replacement, value)
    value = replacement
  if module.has_variable("readings", name):
    module.put_variable("readings", name, value)
  insertion.hear((*module.path, name), value)
  if module.is_mutable_collection("intermediates"):
    module.sow(
      "intermediates", name, value, reduce_fn=lambda _, new: new, init_fn=tuple
    )
  return value


def tapped(module: nn.Module, name: str) -> bool:
  """Says whether the caller of `apply`, or an insert, wants the value `name`.

  Ask before computing a value that nothing but a tap needs.
  """
  _announce(module, name)
  return (
    module.is_mutable_collection("intermediates")
    or insertion.wanted((*module.path, name))
    or any(
      module.has_variable(collection, name)
      for collection in ("readings", "replacements")
    )
  )


def with_open_map(
  module: nn.Module,
  attend: Callable[[], jax.Array],
  weigh: Callable[[], jax.Array],
  apply: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Runs attention, with its map in the open where somebody taps it.

  Args:
    module: whose value "attention_weights" the map is.
    attend: runs the attention as a whole.
    weigh: returns the map alone.
    apply: returns of the map what `attend` returns.
  """
  if not tapped(module, "attention_weights"):
    return attend()
  return apply(tap(module, "attention_weights", weigh()))


def linear_map(
  attend: Callable[[jax.Array], jax.Array], k: jax.Array
) -> jax.Array:
  """Returns the map of attention that never has one, as linear attention.

  Of one value for each key, what comes out is the weights.

  Args:
    attend: from values [batch, keys, heads, keys] to [batch, queries, heads,
      keys].
    k: keys [batch, keys, heads, dim].

  Returns:
    [batch, heads, queries, keys].
  """
  one = jnp.eye(k.shape[1], dtype=k.dtype)[None, :, None]
  values = jnp.broadcast_to(one, (*k.shape[:3], k.shape[1]))
  return attend(values).swapaxes(1, 2)


def _announce(module: nn.Module, name: str) -> None:
  """Says that there is such a value, to who wants to know."""
  if module.is_mutable_collection("tap_names") and not module.is_initializing():
    module.put_variable("tap_names", name, jnp.zeros(()))


def _apply(model, *args, **options):
  with insertion.inserted(getattr(model, "inserts", ())):
    return nn.Module.apply(model, *args, **options)


def _known(model, variables, inputs, options) -> dict[str, tuple[int, ...]]:
  """For each value's path () or, in scanned layers, their number in a tuple."""
  options = {**options, "mutable": ["tap_names"]}

  def trace(variables, inputs):
    return _apply(model, variables, *inputs, **options)[1]

  state = jax.eval_shape(trace, dict(variables), inputs)
  known = _flatten(state.get("tap_names", {}))
  return {path: number.shape for path, number in known.items()}


def _places(known: Mapping[str, tuple[int, ...]]) -> dict[str, _Place]:
  """Where the value of each name is."""
  return {
    "/".join((path, *map(str, index))): (path, index)
    for path, layers in known.items()
    for index in np.ndindex(layers)
  }


def _replace(
  replacements: Mapping[str, jax.Array],
  places: Mapping[str, _Place],
  known: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
  """The collections that put arrays in the place of values, by their names."""
  arrays, replaced = {}, {}
  for name, array in replacements.items():
    if name not in places:
      raise registry.unknown("tap to replace", name, places)
    path, index = places[name]
    arrays.setdefault(path, {})[index] = array
  for path, by_layer in arrays.items():
    if layers := known[path]:
      blank = jnp.zeros_like(next(iter(by_layer.values())))
      stack = jnp.stack([by_layer.get(i, blank) for i in np.ndindex(layers)])
      arrays[path] = stack.reshape(*layers, *blank.shape)
      here = [index in by_layer for index in np.ndindex(layers)]
      replaced[path] = jnp.reshape(jnp.array(here), layers)
    else:
      arrays[path] = by_layer[()]
  return {"replacements": _nest(arrays), "replaced": _nest(replaced)}


def _check_replacements(
  variables: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
  """Raises ValueError for one at a path where there is no value."""
  for path in _flatten(variables.get("replacements", {})):
    if path not in known:
      raise registry.unknown("tap to replace", path, known)


def _nest(by_path: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.unflatten_dict(by_path, sep="/")


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep="/")
