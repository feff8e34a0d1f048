"""How a process of many finds the others, before anything uses a device."""

import contextlib
import os
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import jax

import storage
from training import hosts, watching

# What JAX takes by default: to wait for the others at the start, and for the
# sign of life that each gives every few seconds.
_JOIN_SECONDS, _HEARTBEAT_SECONDS = 300.0, 100.0
_METADATA = "http://{}/computeMetadata/v1/instance/attributes/{}"


@contextlib.contextmanager
def joined(
  *,
  distributed: bool | None = None,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  wait_limit: float = 1800.0,
) -> Iterator[None]:
  """Joins the other processes of the run, if there are any; leaves with them.

  Args:
    distributed: False to be alone whatever the environment says, True to join
      in any way that JAX knows; None for what the environment says.
    coordinator: address of process 0, as "host-a:8476"; with the next two.
    num_processes: how many there are.
    process_id: which of them this is.
    wait_limit: seconds to wait for others before this process ends.

  Raises:
    ValueError: for arguments that do not fit.
    HostsError: if others did not come.
  """
  arguments = _given(coordinator, num_processes, process_id)
  if distributed is False and arguments:
    raise ValueError("distributed=False, but coordinator was given.")
  if arguments is None and distributed is not False:
    arguments = found(os.environ)
  if arguments is None and distributed:
    arguments = {}
  if arguments is None:
    yield
    return
  if wait_limit < 5:
    raise ValueError(f"wait_limit={wait_limit:g} is too short: 5 s or more.")
  _initialize(arguments, wait_limit)
  try:
    hosts.introduce(wait_limit)
    watch = watching.Watch(wait_limit)
    print(_who(), flush=True)
    yield
    watch.stop()
    # Process 0 may still draw; JAX's own end waits for less long.
    hosts.share(None, "the end of the run")
  except BaseException as error:
    watching.tell(type(error), error, None)
    raise


def _given(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any] | None:
  """The arguments that say all, if they are given."""
  given = {
    "coordinator": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == 3:
    return None
  if missing:
    raise ValueError(
      f"{', '.join(missing)} is not given: coordinator, num_processes and "
      "process_id go together."
    )
  if not re.fullmatch(r".+:\d+", coordinator):
    raise ValueError(
      f"coordinator={coordinator!r} is not a host with a port, as host-a:8476."
    )
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f"process_id={process_id} is not from 0 to num_processes - 1 = "
      f"{num_processes - 1}."
    )
  return {
    "coordinator_address": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
    # Nothing else is asked where all is said; all devices that are visible.
    "cluster_detection_method": "deactivate",
  }


def found(environment: Mapping[str, str]) -> dict[str, Any] | None:
  """What the environment says of other processes.

  Args:
    environment: of this process, after JAX was imported, which notes there
      whether there are TPUs.

  Returns:
    Arguments of `jax.distributed.initialize`; None if there are no others.
  """
  if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    return _found_by_slurm(environment)
  return {} if _has_other_tpu_hosts(environment) else None


def _found_by_slurm(environment: Mapping[str, str]) -> dict[str, Any]:
  # JAX takes the device of the task's number, which is not there where SLURM
  # shows each task its own, and too few where a node has one task.
  node = int(environment.get("SLURM_NODEID", 0))
  tasks = _tasks_of_nodes(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
  alone = node < len(tasks) and tasks[node] == 1
  visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
  bound = len(visible) == 1 and visible != [""]
  return {"local_device_ids": []} if alone or bound else {}


def _tasks_of_nodes(text: str) -> list[int]:
  """[2, 2, 2, 1] of SLURM's "2(x3),1"."""
  counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
  return [int(n) for n, times in counts for _ in range(int(times or 1))]


def _has_other_tpu_hosts(environment: Mapping[str, str]) -> bool:
  # Colab's machine is one host, whatever its metadata says.
  if "COLAB_RELEASE_TAG" in environment:
    return False
  if "tpu" not in environment.get("JAX_PLATFORMS", "tpu"):
    return False
  if int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1:
    return True
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if name in environment:
      return "," in environment[name]
  if "TPU_SKIP_MDS_QUERY" in environment:
    return False
  server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
  slices = re.search(
    r"MEGASCALE_NUM_SLICES: *'?(\d+)", _metadata(server, "tpu-env")
  )
  if slices and int(slices[1]) > 1:
    return True
  return "," in _metadata(server, "worker-network-endpoints")


def _metadata(server: str, name: str) -> str:
  """What Google's machines say of themselves; "" where they say nothing.

  Raises:
    HTTPError: if their server is there and gives no answer for two minutes: a
      host of a pod that takes itself to be alone is missed by the others.
  """
  request = urllib.request.Request(
    _METADATA.format(server, name), headers={"Metadata-Flavor": "Google"}
  )

  def ask() -> str:
    try:
      with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode()
    except (urllib.error.URLError, TimeoutError) as error:
      if isinstance(error, urllib.error.HTTPError) and storage.is_transient(
        error
      ):
        raise
      return ""

  return storage.retry(ask, what=f"asking for {name}")


def _initialize(arguments: Mapping[str, Any], wait_limit: float) -> None:
  join, heartbeat = (
    # A short limit is for what goes on, and not for the start of programs.
    min(seconds, max(wait_limit, 30.0))
    for seconds in (_JOIN_SECONDS, _HEARTBEAT_SECONDS)
  )
  # JAX's own limit ends the process with the stack of its C++.
  timer = threading.Timer(join, _end_alone, (arguments, join))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      **arguments,
      initialization_timeout=int(join) + 30,
      heartbeat_timeout_seconds=int(heartbeat),
    )
  except ValueError as error:
    raise ValueError(
      "There should be other processes, but the environment does not say all "
      f"that it takes to join them: {error} Pass --coordinator, "
      "--num_processes and --process_id, or --nodistributed to be alone."
    ) from error
  finally:
    timer.cancel()


def _end_alone(arguments: Mapping[str, Any], limit: float) -> None:
  who = ""
  if "process_id" in arguments:
    who = (
      f"process {arguments['process_id']} of {arguments['num_processes']}, "
      f"coordinator {arguments['coordinator_address']}: "
    )
  print(
    f"On {socket.gethostname()}, {who}not all processes came within "
    f"{limit:.0f} s. Start the same command on every host, see that each "
    "reaches the coordinator's port, or pass --nodistributed to be alone.",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def _who() -> str:
  return (
    f"{hosts.named([jax.process_index()])} of {jax.process_count()}, with "
    f"{jax.local_device_count()} of {jax.device_count()} devices "
    f"({jax.devices()[0].device_kind})"
  )
