"""How values leave a model by name, and how they are edited.

A module hands a value to `tap`, and an attention its map to `with_open_map`.
Nothing is computed for them until somebody calls `read`, and then for the names
that are asked for only: attention whose map nobody sees stays in one piece.

Beneath are collections of Flax's. In "readings" stand the values that are
wanted, each by a number that the value takes the place of; "tap_names" lists
what there is. Edits are functions, see `models.edits`. And Flax's own way, to
have all values at once of `mutable=["intermediates"]`, goes too.
"""

import collections
import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from models import edits, insertion, scanned_names, tap_errors
from models.edits import Edits, Site, StatefulEdit

__all__ = [
  "COLLECTIONS",
  "Edits",
  "Site",
  "StatefulEdit",
  "Tapped",
  "edited",
  "list_names",
  "list_taps",
  "read",
  "remembers",
  "tap",
  "tapped",
  "with_given",
  "with_open_map",
]

# What a transform over layers, as `nn.scan`, has to lift, with the layers as
# the first axis.
COLLECTIONS = (
  "intermediates",
  "readings",
  "tap_names",
  edits.LAYERS,
  edits.STATE,
)


def read(
  model: nn.Module,
  variables: Mapping[str, Any],
  *inputs: Any,
  names: Iterable[str] = (),
  edit: Edits = (),
  **options: Any,
) -> tuple[Any, dict[str, jax.Array]]:
  """Applies a model, reads some of its values and edits others.

  It can be jitted, and differentiated by inputs, variables and whatever the
  edits close over.

  Args:
    model: any module of which a part uses taps.
    variables: its parameters and other collections.
    *inputs: what the model is called with.
    names: paths of values, as "stage_0/block_1/hidden_state", or shell patterns
      of them, as "*/attention_weights". Those of scanned layers are named as
      those of layers one after another, "layer_3/hidden_state".
    edit: what is done to values, by such patterns: an array takes the place of
      a value of its shape, and a function maps a value and its `edits.Site` to
      a replacement. Of several edits of a value the first is applied first.
    **options: of `model.apply`, as `train=True`, `method`, `rngs` or `mutable`.

  Returns:
    (output, values): what `model.apply` returns, and the values by their names,
    those of a pattern in the order of layers. A value that is edited is read as
    its replacement.

  Raises:
    ValueError: for a name or an edit that fits no value, with the nearest that
      there are, and for a replacement of another shape or a dtype that the
      value's cannot hold.
  """
  if edit:
    more = edits.pairs(edit)
    known_edits = getattr(model, "edits", ())
    model = _Edited(model, (*known_edits, *more))
  known = _known(model, variables, inputs, options)
  places = scanned_names.places(known)
  wanted = {}
  for name in names:
    matches = fnmatch.filter(places, name)
    if not matches:
      raise tap_errors.unknown("tap", name, places)
    wanted |= {match: places[match] for match in matches}
  # Of scanned layers all are read, for they are one program.
  readings = {path: jnp.zeros(known[path]) for path, _ in wanted.values()}
  variables = {**variables, "readings": _nest(readings)}
  mutable = options.pop("mutable", False)
  output, state = _apply_edited(
    model,
    known,
    variables,
    *inputs,
    **options,
    mutable=_also(mutable, "readings"),
  )
  state = dict(state)
  values = _flatten(state.pop("readings", {}))
  if mutable:
    output = output, state
  # Under jit, a plain dictionary would come out with layer 10 before layer 2.
  return output, collections.OrderedDict(
    (name, values[path][index]) for name, (path, index) in wanted.items()
  )


def list_names(
  model: nn.Module, variables: Mapping[str, Any], *inputs: Any, **options: Any
) -> list[str]:
  """The names of all values that `read` gives for the same arguments."""
  return list(scanned_names.places(_known(model, variables, inputs, options)))


def list_taps(
  model: nn.Module, variables: Mapping[str, Any], *inputs: Any, **options: Any
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of all values that `read` gives, by their names."""

  def trace(variables, inputs):
    return read(model, variables, *inputs, names=["*"], **options)[1]

  return jax.eval_shape(trace, dict(variables), inputs)


def edited(model: nn.Module, edit: Edits) -> nn.Module:
  """Returns a model whose every `apply` runs with edits.

  They come after those that the model has. It is of the same class and can be
  hashed, so that all goes with it that goes with a model: training, decoding,
  sampling, jit.

  Args:
    model: any module of which a part uses taps.
    edit: see `read`. Functions should close over no arrays that change, or each
      change compiles anew; `with_given` is for those.

  Raises:
    ValueError: if the model is no `Tapped`, or as `edits.pairs`.
  """
  if not isinstance(model, Tapped):
    raise ValueError(
      f"model is a {type(model).__name__}; edits go with models of "
      "`models.create`, and with others in `read` alone"
    )
  return model.clone(edits=(*model.edits, *edits.pairs(edit)))


def with_given(variables: Mapping[str, Any], given: Any) -> dict[str, Any]:
  """Returns variables whose edits find arrays as `site.given`.

  Args:
    variables: of a model.
    given: a tree of arrays. Mappings are joined, so that several edits have
      theirs: what is not named again stays as it was given before.
  """
  before = variables.get(edits.GIVEN)
  if isinstance(before, Mapping) and isinstance(given, Mapping):
    given = {**before, **given}
  return {**variables, edits.GIVEN: given}


def remembers(model: nn.Module) -> bool:
  """Whether a model has edits that remember."""
  return any(
    isinstance(edit, StatefulEdit) for _, edit in getattr(model, "edits", ())
  )


class Tapped(nn.Module):
  """A model, of which values are read and edited, and that takes inserts.

  Attributes:
    inserts: modules that are put at places of it, see `models.insertion`.
    edits: pairs of patterns and edits, see `edited`.
  """

  inserts: tuple[Any, ...] = dataclasses.field(default=(), kw_only=True)
  edits: tuple[Any, ...] = dataclasses.field(default=(), kw_only=True)

  # Not a method that runs within the model: Flax shall leave it as it is.
  @nn.nowrap
  def apply(self, variables, *args, **options):
    """Does as Flax's.

    Raises:
      ValueError: for edits of values that are not there, and for inserts that
        cannot be.
    """
    if not self.edits:
      return _apply(self, variables, *args, **options)
    known = _known(self, variables, args, options)
    return _apply_edited(self, known, variables, *args, **options)

  @nn.nowrap
  def bind(self, variables, *args, **options):
    """Does as Flax's.

    Raises:
      ValueError: with variables, if there are edits or inserts: those run where
        a model is applied, and what is bound would be the model without.
    """
    if variables and (self.edits or self.inserts):
      raise ValueError(
        "a model with edits or inserts cannot be bound to variables, for it "
        "would run without them; use apply"
      )
    return super().bind(variables, *args, **options)

  @nn.nowrap
  def init_with_output(self, *args, **options):
    """Does as Flax's, with inserts; `init` is made of it."""
    with insertion.inserted(self.inserts):
      return super().init_with_output(*args, **options)


@dataclasses.dataclass(frozen=True)
class _Edited:
  """A module and its edits, also if it has no field for them."""

  module: nn.Module
  edits: tuple[Any, ...]


def tap(
  module: nn.Module,
  name: str,
  value: jax.Array,
  facts: Callable[[], Mapping[str, jax.Array]] | None = None,
) -> jax.Array:
  """Lets the caller of `apply` read or edit the value `name` of `module`.

  Args:
    module: that has the value.
    name: of the value.
    value: itself.
    facts: returns what an edit may want to know beside it.

  Returns:
    The value, or what it was edited to.

  Raises:
    ValueError: if a replacement has another shape.
  """
  _announce(module, name)
  value = edits.edited(module, name, value, facts)
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
  path = (*module.path, name)
  return (
    module.is_mutable_collection("intermediates")
    or insertion.wanted(path)
    or edits.wanted("/".join(path))
    or module.has_variable("readings", name)
  )


def with_open_map(
  module: nn.Module,
  attend: Callable[[], jax.Array],
  weigh: Callable[..., jax.Array],
  apply: Callable[[jax.Array], jax.Array],
  facts: Callable[[], Mapping[str, jax.Array]] | None = None,
  *,
  scores: bool = False,
) -> jax.Array:
  """Runs attention, with its map in the open where somebody taps it.

  What it returns is the value "head_outputs".

  Args:
    module: whose value "attention_weights" the map is.
    attend: runs the attention as a whole.
    weigh: returns the map alone.
    apply: returns of the map what `attend` returns.
    facts: see `tap`.
    scores: whether `weigh` takes `edit_scores`, as `attention_weights` does, so
      that there is a value "attention_scores".
  """
  open_scores = scores and tapped(module, "attention_scores")
  if open_scores:
    see = lambda scores: tap(module, "attention_scores", scores, facts)
    weights = weigh(edit_scores=see)
  elif tapped(module, "attention_weights"):
    weights = weigh()
  else:
    return tap(module, "head_outputs", attend(), facts)
  weights = tap(module, "attention_weights", weights, facts)
  return tap(module, "head_outputs", apply(weights), facts)


def _announce(module: nn.Module, name: str) -> None:
  """Says that there is such a value, to who wants to know."""
  if module.is_mutable_collection("tap_names") and not module.is_initializing():
    module.put_variable("tap_names", name, jnp.zeros(()))


def _apply(model, variables, *args, **options):
  """Applies a model as Flax does, with its inserts and without its edits."""
  model = _module(model)
  variables = {k: v for k, v in variables.items() if k != edits.GIVEN}
  with insertion.inserted(getattr(model, "inserts", ())), edits.at_work(None):
    return nn.Module.apply(model, variables, *args, **options)


def _apply_edited(model, known, variables, *args, **options):
  """Applies a model with its edits, whose memory is in the cache, if any."""
  asked = getattr(model, "edits", ())
  if not asked:
    return _apply(model, variables, *args, **options)
  places = scanned_names.places(known)
  plan = edits.Plan(
    asked,
    places,
    lambda pattern: tap_errors.unknown("tap to edit", pattern, places),
  )
  given = variables.get(edits.GIVEN)
  variables = {k: v for k, v in variables.items() if k != edits.GIVEN}
  variables[edits.LAYERS] = _nest(plan.layers)
  cache = options.get("cache")
  keeps = remembers(model) and cache is not None
  if keeps:
    options["cache"] = {k: v for k, v in cache.items() if k != edits.STATE}
    variables[edits.STATE] = cache.get(edits.STATE, {})
    mutable = options.get("mutable", False)
    options["mutable"] = _also(mutable, edits.STATE)
  module = _module(model)
  with (
    insertion.inserted(getattr(module, "inserts", ())),
    edits.at_work(plan, given),
  ):
    result = nn.Module.apply(module, variables, *args, **options)
  if not keeps:
    return result
  (output, cache), state = result
  state = dict(state)
  output = output, {**cache, edits.STATE: state.pop(edits.STATE, {})}
  return (output, state) if mutable else output


def _module(model):
  return model.module if isinstance(model, _Edited) else model


def _also(mutable, collection):
  """What is mutable, and a collection more, in Flax's notation."""
  if mutable is True:
    return True
  listed = [mutable] if isinstance(mutable, str) else mutable or ()
  return [*listed, collection]


def _known(model, variables, inputs, options) -> dict[str, tuple[int, ...]]:
  """For each value's path () or, in scanned layers, their number in a tuple."""
  mutable = _also(options.get("mutable"), "tap_names")
  options = {**options, "mutable": mutable}
  if isinstance(cache := options.get("cache"), Mapping):
    options["cache"] = {k: v for k, v in cache.items() if k != edits.STATE}

  def trace(variables, inputs):
    return _apply(model, variables, *inputs, **options)[1]

  state = jax.eval_shape(trace, dict(variables), inputs)
  known = _flatten(state.get("tap_names", {}))
  return {path: number.shape for path, number in known.items()}


def _nest(by_path: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.unflatten_dict(by_path, sep="/")


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep="/")
