"""Which implementation runs, and where its kernel finds its share of the data.

A public function of `attention` takes `implementation`:

- "xla": the reference, which defines what is right;
- "pallas": the kernel for the platform of the current mesh, or else the one
  that JAX runs on; an error says why if there is none;
- "auto": the kernel if there is one for the platform and the arguments,
  otherwise the reference;
- "tpu", "gpu": that kernel whatever the platform here, to compile it for a chip
  that is not at hand; "tpu_interpret", "gpu_interpret": the same kernel, run
  by Pallas's interpreter on any machine, to test it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import PartitionSpec

IMPLEMENTATIONS = (
  "auto",
  "xla",
  "pallas",
  "tpu",
  "gpu",
  "tpu_interpret",
  "gpu_interpret",
)
# Axes of the mesh that a batch and the heads are split over, where it has them.
BATCH_AXES = ("slice", "data", "fsdp")
HEAD_AXES = ("model",)
# The axis that the tokens of a row are split over.
SEQUENCE_AXIS = "sequence"


@dataclasses.dataclass(frozen=True)
class Target:
  """What a kernel is built for.

  Attributes:
    platform: "tpu" or "gpu".
    interpret: whether Pallas's interpreter runs the kernel.
  """

  platform: str
  interpret: bool = False


def choose(
  implementation: str, reasons: Mapping[str, Callable[[], str | None]]
) -> Target | None:
  """Returns the kernel target to use, or None for the reference.

  Args:
    implementation: one of IMPLEMENTATIONS.
    reasons: for each platform that has a kernel, a function that says why the
      kernel cannot take the arguments, or None if it can.

  Raises:
    ValueError: if there is no such implementation, or if a kernel was asked
      for and cannot take the arguments.
  """
  name = platform(implementation)
  if name == "xla":
    return None
  if name not in reasons:
    reason = f"there is no kernel for the platform {name!r}"
  else:
    reason = reasons[name]()
  if reason is None:
    return Target(name, interpret=implementation.endswith("_interpret"))
  if implementation == "auto":
    return None
  raise ValueError(f"implementation is {implementation!r}, but {reason}")


def platform(implementation: str) -> str:
  """Returns whose kernels may run: "tpu", "gpu", "cpu", or "xla" for none.

  Raises:
    ValueError: if there is no such implementation.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation is {implementation!r}; it must be one of "
      f"{', '.join(map(repr, IMPLEMENTATIONS))}"
    )
  if implementation in ("auto", "pallas"):
    return chip()[0]
  return implementation.split("_")[0]


def chip() -> tuple[str, str]:
  """Returns the platform, "tpu", "gpu" or "cpu", and the kind of the chips.

  They are those of the current mesh, which need not be here: a step that is
  compiled for a pod has the kernels that it will have there. Without a mesh
  they are what JAX runs on.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return jax.default_backend(), jax.devices()[0].device_kind
  platform = "gpu" if device.platform in ("cuda", "rocm") else device.platform
  return platform, device.device_kind


@functools.cache
def _say_repeated(
  what: str, sizes: tuple[int, ...], axes: tuple[tuple[str, int], ...]
) -> None:
  """Says, once for the same sizes, that devices compute what others do."""
  logging.warning(
    "attention: %s of %s cannot be split over the mesh axes %s, which have %d "
    "devices together; each device computes all of it",
    what,
    " and ".join(map(str, sizes)),
    ", ".join(f"{axis}={size}" for axis, size in axes),
    math.prod(size for _, size in axes),
  )


@functools.cache
def _say_whole(reason: str, parts: int) -> None:
  """Says, once for the same reason, that devices compute what others do."""
  logging.warning(
    "attention: a call is not split over the mesh axis %s=%d: %s; each device "
    "computes all of it",
    SEQUENCE_AXIS,
    parts,
    reason,
  )


def say_whole(reason: str) -> None:
  """Says, once for the same reason, why a sequence is not split."""
  _say_whole(reason, sequence_parts())


def sequence_parts() -> int:
  """Returns how many devices the current mesh splits the tokens of a row over.

  1 inside of `jax.shard_map`, where a device has its part already.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return (
    mesh.shape[SEQUENCE_AXIS] if SEQUENCE_AXIS in automatic_axes(mesh) else 1
  )


def automatic_axes(mesh: jax.sharding.AbstractMesh) -> set[str]:
  """Returns the axes of a mesh that are left to the compiler."""
  return {
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind == jax.sharding.AxisType.Auto
  }


def all_tokens(x: jax.Array) -> jax.Array:
  """Gives each device all tokens of an array [batch, length, ...]."""
  axes = [PartitionSpec.UNCONSTRAINED] * x.ndim
  axes[1] = None
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def per_device(
  kernel: Callable,
  arrays: Sequence[jax.Array | np.ndarray],
  layouts: Sequence[str],
  out_layouts: Sequence[str] | str,
  *,
  sequence: str = "",
  whole: str = "its kernel needs all tokens at once",
):
  """Calls `kernel(*arrays)`, on each device of the current mesh its own part.

  The compiler cannot split a kernel. Where a mesh of several devices is set
  (`jax.set_mesh`), the batch axis is split over the mesh axes BATCH_AXES and
  the heads over HEAD_AXES as far as sizes divide, and a warning says once
  where they do not; other axes are whole on each device, unless `sequence` has
  their letter.

  Args:
    kernel: function of arrays only.
    arrays: its arguments; those of NumPy stay so where nothing is split.
    layouts: a letter for each axis of each array; "b" is the batch and "h" the
      heads, which may be of size 1 to be shared.
    out_layouts: the same for the result, or one for each of several results.
    sequence: letters of axes that are split over SEQUENCE_AXIS, by a kernel
      that knows; where they are not of size 1, they divide by
      `sequence_parts()`.
    whole: why a call splits none; it is said where the mesh could, if anything.

  Returns:
    What `kernel` returns.
  """
  mesh = jax.sharding.get_abstract_mesh()
  automatic = automatic_axes(mesh)
  names = {}
  for letter, axes in (("b", BATCH_AXES), ("h", HEAD_AXES)):
    axes = tuple(axis for axis in axes if axis in automatic)
    sizes = {
      size
      for array, layout in zip(arrays, layouts, strict=True)
      for size, axis in zip(array.shape, layout, strict=True)
      if axis == letter and size > 1
    }
    parts = 1
    for axis in axes:
      parts *= mesh.shape[axis]
    if parts > 1 and sizes and all(size % parts == 0 for size in sizes):
      names[letter] = axes
    elif parts > 1 and any(letter in layout for layout in layouts):
      _say_repeated(
        "batch" if letter == "b" else "heads",
        tuple(sorted(sizes)) or (1,),
        tuple((axis, mesh.shape[axis]) for axis in axes),
      )
  if sequence_parts() > 1:
    names |= dict.fromkeys(sequence, SEQUENCE_AXIS)
    if not sequence and whole:
      say_whole(whole)
  if all(mesh.shape[name] == 1 for name in automatic):
    return kernel(*arrays)

  def spec(layout, shape=None):
    return PartitionSpec(
      *(
        names.get(axis) if shape is None or shape[i] > 1 else None
        for i, axis in enumerate(layout)
      )
    )

  if isinstance(out_layouts, str):
    out_specs = spec(out_layouts)
  else:
    out_specs = tuple(spec(layout) for layout in out_layouts)
  return jax.shard_map(
    kernel,
    in_specs=tuple(
      spec(layout, array.shape)
      for array, layout in zip(arrays, layouts, strict=True)
    ),
    out_specs=out_specs,
    # All, also those of one device: Mosaic's kernels refuse a mesh of which an
    # axis is left to the compiler.
    axis_names=automatic,
    check_vma=False,
  )(*arrays)
