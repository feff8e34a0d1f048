"""The device mesh, and how batches lie on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# From those that exchange least to those that exchange most.
AXES = ("slice", "data", "fsdp", "sequence", "model")
# A batch is split over these; the other axes see all of its rows.
BATCH_AXES = ("slice", "data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)
_AUTO = (AxisType.Auto,) * len(AXES)


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
    ValueError: if the sizes do not multiply to the number of devices, or TPUs
      are of several slices and `slice` is not how many.
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
      "at most one of them may be -1."
    )
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  slices: dict[Any, list[Any]] = {}
  for device in devices:
    slices.setdefault(getattr(device, "slice_index", None), []).append(device)
  # GPUs have an index for each machine, and are in that order anyway. Without
  # several slices the axis is one like others, to rehearse them.
  if len(slices) == 1 or devices[0].platform != "tpu":
    return _arranged(sizes, devices)
  if sizes[0] != len(slices):
    raise ValueError(
      f"mesh.slice={sizes[0]} does not fit these TPUs, which are "
      f"{len(slices)} slices: set mesh.slice={len(slices)}."
    )
  parts = [_arranged((1, *sizes[1:]), slices[i]) for i in sorted(slices)]
  return Mesh(np.concatenate([part.devices for part in parts]), AXES, _AUTO)


def _arranged(sizes: Sequence[int], devices: Sequence[Any]) -> Mesh:
  """Returns a mesh of devices that one network connects."""
  return jax.make_mesh(sizes, AXES, devices=devices, axis_types=_AUTO)


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
