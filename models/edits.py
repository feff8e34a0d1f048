"""Functions that change values of a model where taps have them.

`models.taps` runs models with edits; here is what an edit is, and how a tap
meets those that are for it. Nothing of a model is changed: functions are known
to one call of it, while it is traced.
"""

import contextlib
import dataclasses
import fnmatch
import inspect
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# A collection: the numbers of scanned layers, at values that are edited.
LAYERS = "edit_layers"
# A collection, and a part of a cache: what edits remember.
STATE = "edit_state"
# Beside the collections of a model: arrays for its edits.
GIVEN = "edit_inputs"

# The path of a value in the model; and one of its values, with the number of
# its layer among those of a scan.
Path = str
Place = tuple[Path, tuple[int, ...]]
_NUMBERED = re.compile(r"(?:layer|block)_(\d+)")


@dataclasses.dataclass(frozen=True)
class Site:
  """Where an edit is at work, in one call.

  Attributes:
    name: of the value; that of a scanned layer is not known while the program
      of all of them is made, and has a "*" where its number would be.
    path: of the value among the modules of the model.
    layer: the number of its layer (or block); int32 [] in scanned layers, None
      if it is in none.
    facts: what the module says about the value, by names. Of a map of attention
      in a language model "query_positions" [batch, queries], "key_positions"
      [batch, keys], both int32 and -1 for padding and empty places of a cache,
      and "visible", bool, which broadcasts to [batch, heads, queries, keys].
    given: the arrays that came with the variables, see `taps.with_given`.
    heard: values that were computed before, by path.
  """

  name: str
  path: Path
  layer: int | jax.Array | None
  facts: Mapping[str, jax.Array]
  given: Any
  heard: Mapping[Path, jax.Array]

  def value(self, name: str) -> jax.Array:
    """What a tap near by had before, in the same call, as edited.

    Args:
      name: a path beside this value, as "queries" beside
        "layer_3/mixer/attention_weights"; or, if nothing is there, beside the
        module that this value is in, as "input_state".

    Raises:
      ValueError: if there is none.
    """
    path = self.path.split("/")[:-1]
    for end in reversed(range(len(path) + 1)):
      if (found := "/".join((*path[:end], name))) in self.heard:
        return self.heard[found]
    raise ValueError(
      f"the edit of {self.name} reads {name!r}, but no tap of that name ran "
      f"before it, beside it or beside what it is in; there were "
      f"{sorted(self.heard)}"
    )


class StatefulEdit:
  """An edit that remembers from one call to the next, through the cache.

  A subclass is a frozen dataclass. Without a cache every call begins anew.
  """

  def init(self, value: jax.Array, site: Site) -> Any:
    """Arrays to begin with; their shapes must not depend on queries."""
    raise NotImplementedError

  def __call__(
    self, value: jax.Array, site: Site, state: Any
  ) -> tuple[jax.Array, Any]:
    """Returns the replacement and what to remember."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class _Put:
  """An edit that puts an array in the place of a value.

  It is equal to itself alone, as a function is, so that models with it can be
  hashed.
  """

  array: Any

  def __call__(self, value: jax.Array, site: Site) -> Any:
    return self.array


Edit = jax.Array | Callable[..., Any]
Edits = Mapping[str, Edit] | Iterable[tuple[str, Edit]]


def pairs(edits: Edits) -> tuple[tuple[str, Callable[..., Any]], ...]:
  """Edits in the order in which they are applied, all of them functions.

  Raises:
    ValueError: if it is neither a mapping nor pairs, or an edit is no array and
      cannot be called with a value and its site.
  """
  if callable(edits):
    raise ValueError(f"edit is {edits!r}; it must have a pattern for each edit")
  listed = edits.items() if isinstance(edits, Mapping) else edits
  return tuple(_pair(pair) for pair in listed)


def _pair(pair) -> tuple[str, Callable[..., Any]]:
  if (
    not isinstance(pair, list | tuple)
    or len(pair) != 2
    or not isinstance(pair[0], str)
  ):
    raise ValueError(
      f"edit has {pair!r}; it must have pairs of a pattern and an edit"
    )
  pattern, edit = pair
  if not callable(edit):
    if not hasattr(edit, "shape"):
      raise ValueError(
        f"edit has {edit!r} for {pattern!r}; it must be an array or a function "
        "of a value and its site"
      )
    return pattern, _Put(edit)
  given = ("value", "site", "state")[: 2 + isinstance(edit, StatefulEdit)]
  if not _takes(edit, len(given)):
    raise ValueError(
      f"edit has {edit!r} for {pattern!r}, which takes "
      f"{inspect.signature(edit)}; it is called with ({', '.join(given)})"
    )
  return pattern, edit


def _takes(function: Callable[..., Any], count: int) -> bool:
  """Whether a function takes so many arguments, as far as can be known."""
  try:
    signature = inspect.signature(function)
  except ValueError:  # Some that are written in C have none.
    return True
  try:
    signature.bind(*range(count))
  except TypeError:
    return False
  return True


@dataclasses.dataclass(frozen=True)
class _Planned:
  """An edit for a value: its number, and which scanned layers, if not all."""

  number: int
  edit: Edit
  layers: tuple[int, ...] | None


class Plan:
  """Which edits meet which values, in one call of a model."""

  def __init__(
    self,
    edits: Sequence[tuple[str, Edit]],
    places: Mapping[str, Place],
    unknown: Callable[[str], ValueError],
  ):
    """Makes it.

    Args:
      edits: patterns of names, and what is done to these values.
      places: where the value of each name is.
      unknown: makes the error of a pattern that fits none.
    """
    by_path = {}
    for name, (path, index) in places.items():
      by_path.setdefault(path, {})[index] = name
    self.paths: dict[Path, list[_Planned]] = {}
    self.names = {}
    # The numbers of scanned layers, at the values that are edited.
    self.layers: dict[Path, jax.Array] = {}
    for number, (pattern, edit) in enumerate(edits):
      matches = set(fnmatch.filter(places, pattern))
      if not matches:
        raise unknown(pattern)
      for path, names in by_path.items():
        mine = [i for i, n in enumerate(names.values()) if n in matches]
        if not mine:
          continue
        scanned = () not in names
        all_layers = [layer_of(name) for name in names.values()]
        if scanned:
          self.layers[path] = jnp.asarray(all_layers, jnp.int32)
        some = scanned and len(mine) < len(names)
        layers = tuple(all_layers[i] for i in mine) if some else None
        planned = _Planned(number, edit, layers)
        self.paths.setdefault(path, []).append(planned)
        self.names[path] = _common(list(names.values()))


def layer_of(name: str) -> int | None:
  """The number of the layer or block that a value is in."""
  found = _NUMBERED.search(name)
  return int(found.group(1)) if found else None


def _common(names: list[str]) -> str:
  """The name, or that of all scanned layers."""
  if len(names) == 1:
    return names[0]
  return _NUMBERED.sub(lambda match: match[0].split("_")[0] + "_*", names[0], 1)


@contextlib.contextmanager
def at_work(plan: Plan | None, given: Any = None) -> Iterator[None]:
  """Lets the taps of a model that is applied meanwhile meet their edits."""
  outer = getattr(_here, "call", None)
  _here.call = None if plan is None else _Call(plan, given)
  try:
    yield
  finally:
    _here.call = outer


# Models are traced in several threads, each with its own.
_here = threading.local()


@dataclasses.dataclass
class _Call:
  plan: Plan
  given: Any
  heard: dict[Path, jax.Array] = dataclasses.field(default_factory=dict)


def wanted(path: Path) -> bool:
  """Whether a value is edited."""
  call = getattr(_here, "call", None)
  return call is not None and path in call.plan.paths


def edited(
  module: nn.Module,
  name: str,
  value: jax.Array,
  facts: Callable[[], Mapping[str, jax.Array]] | None,
) -> jax.Array:
  """Returns what edits make of the value `name` of a module.

  Raises:
    ValueError: if one returns another shape.
  """
  call = getattr(_here, "call", None)
  if call is None:
    return value
  path = "/".join((*module.path, name))
  if path in call.plan.paths:
    full = call.plan.names[path]
    layer = layer_of(full)
    if module.has_variable(LAYERS, name):
      layer = module.get_variable(LAYERS, name)
    known = facts() if facts else {}
    site = Site(full, path, layer, known, call.given, call.heard)
    for planned in call.plan.paths[path]:
      value = _edit(module, name, value, site, planned)
  call.heard[path] = value
  return value


def _edit(module, name, value, site, planned) -> jax.Array:
  edit, layers = planned.edit, planned.layers
  here = None
  if layers is not None:
    here = (site.layer == jnp.asarray(layers, jnp.int32)).any()
  if isinstance(edit, StatefulEdit):
    kept = f"{name}_{planned.number}"
    if module.has_variable(STATE, kept):
      state = module.get_variable(STATE, kept)
    else:
      state = edit.init(value, site)
    new, after = edit(value, site, state)
    if module.is_mutable_collection(STATE):
      if here is not None:
        after = jax.tree.map(lambda a, b: jnp.where(here, a, b), after, state)
      module.put_variable(STATE, kept, after)
  else:
    new = edit(value, site)
  _check_replacement(new, value, site)
  new = jnp.asarray(new, value.dtype)
  return new if here is None else jnp.where(here, new, value)


def _check_replacement(new, value, site) -> None:
  shape = getattr(new, "shape", None)
  if shape is None:
    kind = "nothing" if new is None else f"a {type(new).__name__}"
    raise ValueError(
      f"edit of {site.name} gave {kind}; it must give an array of shape "
      f"{value.shape}"
    )
  if shape != value.shape:
    raise ValueError(
      f"edit of {site.name} has shape {shape}; it must have shape {value.shape}"
    )
  if _rank(new.dtype) > _rank(value.dtype):
    raise ValueError(
      f"edit of {site.name} is {new.dtype}, which {value.dtype}, the dtype of "
      "the value, cannot hold"
    )


def _rank(dtype) -> int:
  """How much numbers of a dtype may say: none of a lower rank holds them."""
  kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
  ranks = (i for i, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind))
  return next(ranks, len(kinds))
