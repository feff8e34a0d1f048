"""What the processes of a run do together. With one process all is trivial."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from training import sharding


def share(value: Any) -> list[Any]:
  """Tells all processes what each of them has, process 0's first.

  All have to call it, or those that do wait for the rest.

  Args:
    value: what JSON can hold.
  """
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(text)))
  # Arrays of one shape, as a collective needs them: [processes, longest].
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(text)] = text
  texts = multihost_utils.process_allgather(padded)
  return [
    json.loads(text[:size].tobytes())
    for text, size in zip(texts, sizes, strict=True)
  ]


def batch_rows(mesh: jax.sharding.Mesh, batch_size: int) -> list[int]:
  """The rows of a batch that the devices of this process hold, ascending.

  Not a share for each process: where the mesh axis `model` spans processes,
  they hold the same rows and have to read the same examples. Nor always a run
  of rows: a mesh follows the wires of a pod, and not the numbers of its hosts.

  Args:
    mesh: from `sharding.create_mesh`.
    batch_size: rows of a batch of all processes together.
  """
  placed = sharding.batch_sharding(mesh)
  held = placed.addressable_devices_indices_map((batch_size,)).values()
  return sorted({row for (rows,) in held for row in range(batch_size)[rows]})
