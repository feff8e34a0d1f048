"""What the processes of a run do together. With one process all is trivial.

Texts go by JAX's coordination service and not through the devices: a collective
waits for ever for a process that hangs, and cannot say for which.
"""

import functools
import itertools
import json
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from absl import logging

# Nothing public has a barrier with a time limit.
from jax._src import distributed

import storage
from training import sharding

# Calls of `share`, which all processes make in the same order.
_calls = itertools.count()
_names: dict[int, str] = {}
_limit = 1800.0
# How often `went_on` was called.
done = 0


class HostsError(RuntimeError):
  """Another process did not come, or the processes are not of one run."""


def went_on() -> None:
  """To be called wherever training goes on, equally often by all processes."""
  global done
  done += 1


def client() -> Any:
  """Of JAX's coordination service, which holds texts by key."""
  return distributed.global_state.client


def introduce(limit: float) -> None:
  """Tells all processes on which host each is; the first thing they do.

  Args:
    limit: seconds that `share` waits from now on.

  Raises:
    HostsError: if not all came within that time.
  """
  global _limit
  _limit = limit
  _names.update(enumerate(share(socket.gethostname())))


def named(processes: Iterable[int]) -> str:
  """As people know them: "process 1 (host-b), process 2 (host-c)"."""
  return ", ".join(
    f"process {index}" + (f" ({_names[index]})" if index in _names else "")
    for index in sorted(processes)
  )


def share(value: Any, purpose: str = "the others") -> list[Any]:
  """Tells all processes what each of them has, process 0's first.

  All have to call it; those that do wait for the rest.

  Args:
    value: what JSON can hold.
    purpose: for the error, what is waited for.

  Raises:
    HostsError: if not all called it in time; names those that did not.
  """
  count = jax.process_count()
  if count == 1:
    return [value]
  folder = f"foveal/share_{next(_calls)}"
  # Whoever waits here has a limit of its own.
  went_on()
  service = client()
  service.key_value_set(f"{folder}/{jax.process_index()}", json.dumps(value))
  try:
    service.wait_at_barrier(folder, int(1000 * _limit))
  except RuntimeError as error:
    missing = set(range(count)) - read(service, folder).keys()
    raise HostsError(
      f"Waited for {purpose} up to {_limit:.0f} s: "
      + (f"{named(missing)} did not come." if missing else f"{error}")
    ) from error
  return [json.loads(text) for _, text in sorted(read(service, folder).items())]


def read(service: Any, folder: str) -> dict[int, str]:
  """What each process has put under `<folder>/<its index>`."""
  found = service.key_value_dir_get(f"{folder}/")
  return {int(key.rpartition("/")[2]): text for key, text in found}


def check_same(values: Mapping[str, str]) -> None:
  """Compares what has to be the same in all processes.

  Args:
    values: by what they are, as {"git commit": "68d8166"}.

  Raises:
    HostsError: if they differ; names what and where.
  """
  all_values = share(dict(values))
  for name, first in all_values[0].items():
    others = [i for i, them in enumerate(all_values) if them[name] != first]
    if others:
      there = all_values[others[0]][name]
      raise HostsError(
        f"{named(others)} has another {name} than process 0, which has "
        f"{_around(first, there)}, and not {_around(there, first)}. Install "
        "and start the same on every host."
      )


def check_folder(path: str) -> None:
  """Checks that all processes see the same folder.

  Args:
    path: of a folder; files of process 0 are there for a moment.

  Raises:
    HostsError: if one does not see what process 0 writes there.
  """
  if jax.process_count() == 1:
    return
  token = storage.path(path) / ".seen_by_all_hosts"
  # Another one at each start, so that no folder has it by chance.
  text = json.dumps([socket.gethostname(), id(path)])
  if jax.process_index() == 0:
    storage.write_whole(token, text)
  text = share(text)[0]
  seen = share(_text(token) == text)
  if jax.process_index() == 0:
    remove = functools.partial(token.unlink, missing_ok=True)
    storage.retry(remove, what=f"removing {token}")
  if not all(seen):
    blind = [index for index, sees in enumerate(seen) if not sees]
    raise HostsError(
      f"workdir={path!r} is not one folder: {named(blind)} does not see there "
      "what process 0 writes. Take a bucket, or a disk that all hosts mount."
    )


def _text(path: Any) -> str | None:
  try:
    return storage.read_bytes(path).decode()
  except OSError as error:
    logging.info("%s cannot be read: %s", path, error)
    return None


def _around(text: str, other: str) -> str:
  """The part of a long text in which it begins to differ from another."""
  same = zip(text, other, strict=False)
  start = sum(1 for _ in itertools.takewhile(lambda x: x[0] == x[1], same))
  return repr(text[max(0, start - 40) : start + 40])


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
