"""Where arrays lie on a mesh: rules by path, and FSDP for the rest."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training import paths
from training.sharding import AXES

# In a rule: an axis that stays whole, also where "fsdp" looks for one.
WHOLE = "whole"
# Splitting small arrays costs more in communication than it saves in memory.
_MIN_FSDP_SIZE = 2**14
# What a rule says of an axis of an array, and a rule.
Entry = str | Sequence[str] | None
Rule = tuple[str, Sequence[Entry]]


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where an array lies.

  Attributes:
    spec: the mesh axes that split each of its axes.
    missed: mesh axes that were to split it, and that no axis of it divides by.
  """

  spec: PartitionSpec
  missed: tuple[str, ...] = ()

  @property
  def axes(self) -> tuple[str, ...]:
    """The mesh axes that split it, in the order of AXES."""
    used = {axis for entry in self.spec for axis in _axes_of(entry)}
    return tuple(axis for axis in AXES if axis in used)


def placements(
  tree: Any, mesh: Mesh, rules: Sequence[Rule], family_rules: Sequence[Rule]
) -> dict[str, Placement]:
  """Chooses a place for every leaf of a tree of shapes, by its path.

  The first of `rules`, then of `family_rules`, that takes the path (see
  `training.paths`) says what splits each axis of the array: a mesh axis, a
  tuple of them, None or WHOLE. Then "fsdp" splits the largest axis that is left
  and divides, or else one that another mesh axis splits already; small arrays
  are left as they are. Optimizer state and moving averages repeat the
  parameters' paths, so they follow them.

  A family's rules are for all of its variants. One that takes nothing of a
  variant is no error, and where sizes or the number of axes do not fit, the
  array is not split by it. `Placement.missed` says so.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s.
    mesh: from `sharding.create_mesh`.
    rules: pairs (pattern of a path, what splits each axis), such as
      `("ffn/expand/kernel", (None, "model"))`.
    family_rules: the same, of the model.

  Returns:
    Where each leaf lies, by its name.

  Raises:
    ValueError: if one of `rules` takes nothing or does not fit an array that it
      takes.
  """
  patterns = paths.check_pairs("sharding_rules", rules)
  named = paths.flatten_with_names(tree)
  paths.group_by_rule(
    "sharding_rules", patterns, [n for n, leaf in named.items() if leaf.ndim]
  )
  family_rules = [rule for rule in family_rules if _is_used(rule[1], mesh)]
  family_patterns = [pattern for pattern, _ in family_rules]

  def place(name: str, leaf: Any) -> Placement:
    if not leaf.ndim:
      return Placement(PartitionSpec())
    index = paths.first_match(patterns, name)
    if index is not None:
      entries, missed = _by_rule(name, leaf.shape, mesh, *rules[index]), ()
    else:
      index = paths.first_match(family_patterns, name)
      axes = None if index is None else family_rules[index][1]
      entries, missed = _by_family_rule(leaf.shape, mesh, axes)
    return _with_fsdp(leaf.shape, mesh, entries, missed)

  return {name: place(name, leaf) for name, leaf in named.items()}


def state_shardings(
  tree: Any,
  mesh: Mesh,
  rules: Sequence[Rule],
  family_rules: Sequence[Rule] = (),
) -> Any:
  """Makes shardings of what `placements` chooses.

  Arguments and errors are those of `placements`.

  Returns:
    A tree of `NamedSharding`s.
  """
  places = iter(placements(tree, mesh, rules, family_rules).values())
  return jax.tree.map(lambda _: NamedSharding(mesh, next(places).spec), tree)


def describe(
  params: Any, mesh: Mesh, places: Mapping[str, Placement]
) -> list[str]:
  """Says what of the parameters is split how, and what could not be.

  Args:
    params: arrays or `jax.ShapeDtypeStruct`s.
    mesh: from `sharding.create_mesh`.
    places: of all of them, from `placements`.

  Returns:
    A line, and another if something could not be split.
  """
  named = paths.flatten_with_names(params)
  sizes: Counter[str] = Counter()
  counts: Counter[str] = Counter()
  for name, leaf in named.items():
    axes = " and ".join(places[name].axes)
    kind = f"over {axes}" if axes else "on every device"
    sizes[kind] += leaf.size
    counts[kind] += 1
  lines = [
    "parameters: "
    + ", ".join(
      f"{size:,} {kind} ({counts[kind]} arrays)"
      for kind, size in sizes.most_common()
    )
  ]
  missed = [
    f"{name.removeprefix('params/')} {leaf.shape} over "
    + " and ".join(f"{axis}={mesh.shape[axis]}" for axis in places[name].missed)
    for name, leaf in named.items()
    if places[name].missed
  ]
  if missed:
    more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
    lines.append(f"could not be split: {'; '.join(missed[:3])}{more}")
  return lines


def bytes_per_device(tree: Any) -> int:
  """What one device holds of arrays or shapes that have shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _axes_of(entry: Entry) -> tuple[str, ...]:
  """The mesh axes that an axis of an array is split over."""
  if entry is None or entry == WHOLE:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)


def _is_used(entries: Sequence[Entry], mesh: Mesh) -> bool:
  """Whether a rule splits anything on this mesh."""
  return any(mesh.shape[a] > 1 for entry in entries for a in _axes_of(entry))


def _divides(size: int, mesh: Mesh, axes: Sequence[str]) -> bool:
  return size % math.prod(mesh.shape[axis] for axis in axes) == 0


def _by_rule(name, shape, mesh, pattern, entries) -> list[Entry]:
  axes = [axis for entry in entries for axis in _axes_of(entry)]
  fits = (
    len(entries) == len(shape)
    and set(axes) <= set(mesh.shape)
    and len(set(axes)) == len(axes)
    and all(
      _divides(size, mesh, _axes_of(entry))
      for entry, size in zip(entries, shape, strict=True)
    )
  )
  if not fits:
    raise ValueError(
      f"sharding_rules: {pattern!r} -> {tuple(entries)} does not fit {name} of "
      f"shape {shape} on the mesh {dict(mesh.shape)}: give one of "
      f"{(*AXES, WHOLE, None)} for each axis, or a tuple of them, no mesh axis "
      "twice, and of sizes that divide that of the axis."
    )
  return list(entries)


def _by_family_rule(
  shape: tuple[int, ...], mesh: Mesh, entries: Sequence[Entry] | None
) -> tuple[list[Entry], tuple[str, ...]]:
  """What a family's rule splits, and the mesh axes that do not fit."""
  if entries is None:
    return [None] * len(shape), ()
  if len(entries) != len(shape):
    wanted = {axis for entry in entries for axis in _axes_of(entry)}
    return [None] * len(shape), tuple(a for a in AXES if a in wanted)
  kept: list[Entry] = []
  missed: list[str] = []
  for entry, size in zip(entries, shape, strict=True):
    fits = _divides(size, mesh, _axes_of(entry))
    kept.append(entry if fits else None)
    missed += () if fits else _axes_of(entry)
  return kept, tuple(missed)


def _with_fsdp(shape, mesh, entries, missed) -> Placement:
  """Lets "fsdp" split an axis of an array, if none is yet."""
  parts = mesh.shape["fsdp"]
  used = {axis for entry in entries for axis in _axes_of(entry)}
  small = math.prod(shape) < _MIN_FSDP_SIZE
  if parts > 1 and "fsdp" not in used and not small:
    # A free axis first; what is split twice is moved in smaller pieces.
    order = sorted(
      (i for i, entry in enumerate(entries) if entry != WHOLE),
      key=lambda i: (bool(_axes_of(entries[i])), -shape[i]),
    )
    for i in order:
      both = (*_axes_of(entries[i]), "fsdp")
      if _divides(shape[i], mesh, both):
        entries = [*entries[:i], both, *entries[i + 1 :]]
        break
    else:
      if order:
        missed = (*missed, "fsdp")
  return Placement(_spec(entries), missed)


def _spec(entries: Sequence[Entry]) -> PartitionSpec:
  """The entries as JAX writes them, without what is whole at the end."""
  named = [_axes_of(entry) for entry in entries]
  while named and not named[-1]:
    named.pop()
  return PartitionSpec(
    *(axes[0] if len(axes) == 1 else axes or None for axes in named)
  )
