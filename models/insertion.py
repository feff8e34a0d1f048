"""Modules that are put at places of a model which knows nothing of them.

Every model has the field `inserts`: pairs (pattern, {"name": ..., options}),
where a name is a key of `models.inserts.INSERTS`. A pattern is one or more
components of a path with slashes between them, each a regular expression of a
whole component, and takes the modules whose path ends so:
"mixer/(query|value)" takes "layer_3/mixer/query". The parameters of an insert
stand beneath the module that it is put at, under its name, as
"layer_3/mixer/query/lora/up"; all others keep their names and, of the same key,
their initial values.

Of several that take a module the first in the tuple runs next to it. Two of one
name do not: the first that takes a module counts.

It is Flax's interception of calls, so an insert sees arguments and results of a
module's `__call__`, under jit, remat and scans over layers too.
"""

import contextlib
import dataclasses
import functools
import importlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn

from models import feed_forward_branch

# A collection of inserts: what moves while they train and is no parameter.
STATE = "insert_state"

Path = tuple[str, ...]
# One component of a pattern after another.
Components = tuple[re.Pattern[str], ...]


class Insert(nn.Module):
  """What is put at a module; a subclass has parameters, and one of two methods.

  Or both, of which one is compact.
  """

  def reads(self) -> Sequence[str]:
    """Values that the methods ask of `Site.value`, by their names there."""
    return ()

  def before(self, site: "Site", x: Any) -> Any:
    """Returns what the module is given in the place of its first argument.

    Args:
      site: where the insert stands.
      x: the first argument of the module.
    """
    del site
    return x

  def after(self, site: "Site", x: Any, y: Any) -> Any:
    """Returns what comes out in the place of what the module returns.

    Args:
      site: where the insert stands.
      x: the first argument of the module, as `before` got it.
      y: what the module made of what `before` returned.
    """
    del site, x
    return y


@dataclasses.dataclass(frozen=True)
class Site:
  """Where an insert stands, in one call.

  Attributes:
    module: that it is put at.
    heard: values that were computed before, by path.
  """

  module: nn.Module
  heard: Mapping[Path, Any]

  @property
  def place(self) -> str:
    """The path of the module, for errors."""
    return "/".join(self.module.path)

  def value(self, name: str) -> Any:
    """What a module or a tap near by gave before, in the same call.

    Args:
      name: a path beside this module, as "query" beside "mixer/out"; or, if
        nothing is there, beside one that this module is in.

    Raises:
      ValueError: if there is none.
    """
    wanted = tuple(name.split("/"))
    path = self.module.path
    for end in reversed(range(len(path))):
      if (found := path[:end] + wanted) in self.heard:
        return self.heard[found]
    raise ValueError(
      f"what is inserted at {self.place} reads {name!r}, but no module and no "
      f"tap of that name ran before it, beside it or beside what it is in; "
      f"there were {['/'.join(path) for path in self.heard]}"
    )


@dataclasses.dataclass(frozen=True)
class Rule:
  """An entry of `inserts`, checked.

  Attributes:
    pattern: as at the top of this file.
    name: of the insert.
    options: fields of it.
  """

  pattern: str
  name: str
  options: Mapping[str, Any]

  @property
  def taken(self) -> str:
    """A pattern of parameters that it has, for `training.paths`."""
    return f"{self.pattern}/{self.name}"

  def make(self, **where: Any) -> Insert:
    """Makes the insert."""
    return _class(self.name)(**self.options, **where)

  def takes(self, path: Path) -> bool:
    """Whether it is put at the module of a path."""
    return ends(path, components(self.pattern))


def rules(inserts: Sequence[Any]) -> tuple[Rule, ...]:
  """Reads the field `inserts` of a model.

  Raises:
    ValueError: if it is no tuple of pairs, a pattern cannot be read, or there
      is no such insert or it has no such option.
  """
  return tuple(_rule(entry) for entry in inserts)


def patterns(model: nn.Module) -> tuple[str, ...]:
  """Patterns of the parameters and collections that a model's inserts have."""
  return tuple(rule.taken for rule in rules(getattr(model, "inserts", ())))


def finder(model: nn.Module) -> Callable[[Path], bool]:
  """Returns what tells of a path in a collection whether it is an insert's."""
  taken = [components(pattern) for pattern in patterns(model)]

  def find(path: Path) -> bool:
    return any(
      ends(path[:end], pattern)
      for pattern in taken
      for end in range(1, len(path))
    )

  return find


def changed(model: nn.Module, name: str, **options: Any) -> nn.Module:
  """Returns a model whose inserts of a name have other options.

  Args:
    model: with inserts.
    name: of inserts, as "tau_gate".
    **options: of them, as `hard=True`.

  Raises:
    ValueError: if the model has none of that name, or they no such option.
  """
  if name not in [rule.name for rule in rules(model.inserts)]:
    raise ValueError(
      f"the model has no insert {name!r}; its inserts are {model.inserts}"
    )
  inserts = tuple(
    (pattern, {**given, **options} if given["name"] == name else given)
    for pattern, given in model.inserts
  )
  rules(inserts)
  return model.clone(inserts=inserts)


@contextlib.contextmanager
def inserted(inserts: Sequence[Any]) -> Iterator[None]:
  """Puts inserts into the model that is applied meanwhile.

  Raises:
    ValueError: as `rules`.
  """
  found = rules(inserts)
  if not found:
    yield
    return
  calls, outer = _Calls(found), _at_work()
  _here.at_work = (*outer, calls)
  try:
    with (
      nn.intercept_methods(calls.intercept),
      feed_forward_branch.one_by_one(),
    ):
      yield
  finally:
    _here.at_work = outer


def wanted(path: Path) -> bool:
  """Whether an insert wants the value of a tap."""
  return any(calls.wants(path) for calls in _at_work())


def hear(path: Path, value: Any) -> None:
  """Tells inserts the value of a tap, or what a module returned."""
  for calls in _at_work():
    if calls.wants(path):
      calls.heard[path] = value


# Models are traced in several threads, each with its own.
_here = threading.local()


def _at_work() -> tuple["_Calls", ...]:
  return getattr(_here, "at_work", ())


class _Calls:
  """Intercepts the calls of modules while a model is applied once."""

  def __init__(self, rules: Sequence[Rule]):
    self.heard = {}
    self._rules = rules
    self._reads = {
      tuple(name.split("/"))
      for rule in rules
      for name in rule.make(parent=None).reads()
    }
    # Where inserts are, whose own modules nothing is put at; and modules that
    # are being called, since one that is computed again is called twice.
    self._own, self._active = set(), set()

  def wants(self, path: Path) -> bool:
    return any(path[-len(end) :] == end for end in self._reads)

  def intercept(self, run, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__":
      return run(*args, **kwargs)
    path = module.path
    if path in self._active or any(
      path[:end] in self._own for end in range(1, len(path) + 1)
    ):
      return run(*args, **kwargs)
    for rule in self._at(path):
      run = functools.partial(self._call, rule, module, run)
    self._active.add(path)
    try:
      out = run(*args, **kwargs)
    finally:
      self._active.remove(path)
    hear(path, out)
    return out

  def _at(self, path: Path) -> list[Rule]:
    first = {}
    for rule in self._rules:
      if rule.takes(path):
        first.setdefault(rule.name, rule)
    return list(first.values())

  def _call(self, rule, module, run, *args, **kwargs):
    if not args:
      raise ValueError(
        f"{rule.name} is put at {'/'.join(module.path)}, which is called "
        "without an array; it needs a layer that has one as its first argument"
      )
    x, *args = args
    scope = module.scope.push(rule.name, reuse=True)
    self._own.add(scope.path)
    insert, site = rule.make(parent=scope), Site(module, self.heard)
    y = run(insert.before(site, x), *args, **kwargs)
    return insert.after(site, x, y)


@functools.cache
def components(pattern: str) -> Components:
  """The regular expressions of a pattern."""
  return tuple(map(re.compile, pattern.split("/")))


def ends(path: Path, pattern: Components) -> bool:
  """Whether a path ends with what a pattern says."""
  if len(path) < len(pattern):
    return False
  last = path[len(path) - len(pattern) :]
  return all(map(re.Pattern.fullmatch, pattern, last))


def _rule(entry: Any) -> Rule:
  if (
    isinstance(entry, str)
    or not isinstance(entry, Sequence)
    or len(entry) != 2
    or not isinstance(entry[1], Mapping)
    or "name" not in entry[1]
  ):
    raise ValueError(
      f"inserts has {entry!r}; it must have pairs of a pattern and options "
      "with a name, as ('mixer/(query|value)', {'name': 'lora', 'rank': 4})"
    )
  pattern, options = entry[0], dict(entry[1])
  name = options.pop("name")
  if not isinstance(pattern, str) or not all(pattern.split("/")):
    raise ValueError(
      f"inserts has the pattern {pattern!r}; it must be components of a path "
      "with slashes between them, as 'mixer/(query|value)'"
    )
  try:
    components(pattern)
  except re.error as error:
    raise ValueError(
      f"inserts has the pattern {pattern!r}, of which a component is no "
      f"regular expression: {error}"
    ) from None
  _registry().check_fields(_class(name), options, name)
  return Rule(pattern, name, options)


def _class(name: str) -> type[Insert]:
  inserts = importlib.import_module("models.inserts").INSERTS
  if name not in inserts:
    raise _registry().unknown("insert", name, inserts)
  module, cls = inserts[name]
  return getattr(importlib.import_module(module), cls)


def _registry() -> Any:
  return importlib.import_module("models.registry")
