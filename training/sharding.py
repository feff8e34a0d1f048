"""The device mesh, and which axis of each array lies on which mesh axis."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from training import paths

# From those that exchange least to those that exchange most.
AXES = ("slice", "data", "fsdp", "sequence", "model")
# A batch is split over these; the other axes see all of its rows.
BATCH_AXES = ("slice", "data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)
# Splitting small arrays costs more in communication than it saves in memory.
_MIN_FSDP_SIZE = 2**14


def create_mesh(
  config: ml_collections.ConfigDict, devices: Sequence[Any] | None = None
) -> Mesh:
  """Arranges the devices along AXES.

  Args:
    config: the sizes of AXES, 1 where one is missing; one may be -1 and takes
      what is left.
    devices: all devices by default.

  Returns:
    A mesh with Auto axes: XLA chooses the shardings inside the step, which
    window partitions and rolled batches need.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [config.get(axis, 1) for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  free = sizes.count(-1)
  fits = (
    all(size == -1 or size > 0 for size in sizes)
    and free <= 1
    and (len(devices) % known == 0 if free else len(devices) == known)
  )
  if not fits:
    raise ValueError(
      f"mesh={dict(zip(AXES, sizes, strict=True))} does not fit "
      f"{len(devices)} device(s): the sizes must multiply to {len(devices)}, "
      "one of them may be -1."
    )
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  return jax.make_mesh(
    sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES)
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a batch over the axes BATCH_AXES."""
  return NamedSharding(mesh, BATCH)


def batch_parts(mesh: Mesh) -> int:
  """How many parts a batch is split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh, argument: str) -> None:
  """Raises ValueError if a batch cannot be split evenly over the mesh."""
  parts = batch_parts(mesh)
  if batch_size <= 0 or batch_size % parts:
    fitting = max(batch_size // parts, 1) * parts
    axes = " x ".join(BATCH_AXES)
    raise ValueError(
      f"{argument}={batch_size} cannot be split over {axes} = {parts} "
      f"devices: use a multiple of {parts}, such as {fitting} or "
      f"{fitting + parts}."
    )


def state_shardings(
  tree: Any, mesh: Mesh, rules: Sequence[tuple[str, Sequence[str | None]]]
) -> Any:
  """Chooses a sharding for every leaf of a tree of shapes, by its path.

  The first rule that takes the leaf's path (see `training.paths`) gives its
  axes.
  Without a rule, the largest axis that divides by the size of the mesh axis
  "fsdp" is split over it, and small arrays are replicated. Optimizer state and
  moving averages repeat the parameters' paths, so they follow them.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s.
    mesh: from `create_mesh`.
    rules: pairs (pattern of a path, axes), such as
      `("ffn/expand/kernel", (None, "model"))`.

  Returns:
    A tree of `NamedSharding`s.

  Raises:
    ValueError: if a rule takes nothing or does not fit an array that it takes.
  """
  patterns = paths.check_pairs("sharding_rules", rules)
  named = paths.flatten_with_names(tree)
  paths.group_by_rule(
    "sharding_rules", patterns, [n for n, leaf in named.items() if leaf.ndim]
  )

  def choose(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    name = paths.path_name(path)
    index = paths.first_match(patterns, name) if leaf.ndim else None
    if index is not None:
      return _sharding_by_rule(name, leaf, mesh, *rules[index])
    return NamedSharding(mesh, _fsdp_spec(name, leaf, mesh))

  return jax.tree_util.tree_map_with_path(choose, tree)


def _sharding_by_rule(name, leaf, mesh, pattern, axes) -> NamedSharding:
  fits = len(axes) == leaf.ndim and all(
    axis is None or (axis in mesh.shape and size % mesh.shape[axis] == 0)
    for axis, size in zip(axes, leaf.shape, strict=True)
  )
  if not fits:
    raise ValueError(
      f"sharding_rules: {pattern!r} -> {tuple(axes)} does not fit {name} of "
      f"shape {leaf.shape} on the mesh {dict(mesh.shape)}: give one of "
      f"{(*AXES, None)} for each axis, of a size that divides it."
    )
  return NamedSharding(mesh, PartitionSpec(*axes))


def _fsdp_spec(name: str, leaf: Any, mesh: Mesh) -> PartitionSpec:
  parts = mesh.shape["fsdp"]
  if parts == 1 or leaf.size < _MIN_FSDP_SIZE:
    return PartitionSpec()
  divisible = [i for i, size in enumerate(leaf.shape) if size % parts == 0]
  if not divisible:
    logging.info(
      "%s %s is replicated: no axis divides by fsdp = %d.",
      name,
      leaf.shape,
      parts,
    )
    return PartitionSpec()
  axis = max(divisible, key=lambda i: leaf.shape[i])
  return PartitionSpec(*[None] * axis, "fsdp")
