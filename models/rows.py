"""Where the residual stream of a model lies on a mesh."""

import math

import jax
from jax.sharding import PartitionSpec

from attention.kernels.dispatch import (
  BATCH_AXES,
  SEQUENCE_AXIS,
  automatic_axes,
)


def by_rows(x: jax.Array, *, tokens: bool = False) -> jax.Array:
  """Keeps a residual stream split by rows, with all channels of each.

  The compiler spreads how parameters are split to what they touch, and where
  FSDP or tensor parallelism split them, it would begin to split channels of the
  stream in their place: rows then come to every device, and each normalisation
  has to ask the others.

  Args:
    x: [batch, ..., channels]; as it is where the current mesh splits nothing
      but batches, or the batch does not divide.
    tokens: whether the second axis are tokens that SEQUENCE_AXIS splits, if
      they divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  sizes = {axis: mesh.shape[axis] for axis in automatic_axes(mesh)}
  rows = tuple(axis for axis in BATCH_AXES if axis in sizes)
  names = ("fsdp", "model", *((SEQUENCE_AXIS,) if tokens else ()))
  splits_arrays = any(sizes.get(axis, 1) > 1 for axis in names)
  if not splits_arrays or x.shape[0] % math.prod(sizes[a] for a in rows):
    return x
  between = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 2)
  if tokens and SEQUENCE_AXIS in sizes:
    divides = x.shape[1] % sizes[SEQUENCE_AXIS] == 0
    between[0] = SEQUENCE_AXIS if divides else None
  return jax.lax.with_sharding_constraint(
    x, PartitionSpec(rows, *between, None)
  )
