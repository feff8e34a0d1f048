"""Rows of arrays that a sampler makes, on whatever mesh the variables are."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from training import hosts, sharding


def whole_batch(size: int, mesh: Mesh | None) -> int:
  """The next size that splits evenly over the mesh."""
  parts = 1 if mesh is None else sharding.batch_parts(mesh)
  return -(-size // parts) * parts


def place(rows: np.ndarray | jax.Array, mesh: Mesh | None) -> jax.Array:
  """Puts rows where the work on them is to be done."""
  if mesh is None:
    return jax.numpy.asarray(rows)
  return jax.device_put(rows, sharding.batch_sharding(mesh))


def whole(array: jax.Array) -> np.ndarray:
  """All rows, also those that other processes hold."""
  hosts.went_on()
  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)
