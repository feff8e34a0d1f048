import contextlib
import http.server
import threading
import types

import pytest

from storage import retrying
from training import joining

SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
  "SLURM_NODEID": "2",
  "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    # One process a node has all its devices.
    ({}, {"local_device_ids": []}),
    # Of two on a node JAX gives each one.
    ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NODEID": "1"}, {}),
    # Unless SLURM shows each its own.
    (
      {
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_NODEID": "1",
        "CUDA_VISIBLE_DEVICES": "3",
      },
      {"local_device_ids": []},
    ),
    ({"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_NODEID": "0"}, {}),
    (
      {"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_NODEID": "1"},
      {"local_device_ids": []},
    ),
    # In the script of the job, or a step of one task.
    ({"SLURM_STEP_NUM_TASKS": "1", "TPU_SKIP_MDS_QUERY": "1"}, None),
  ],
)
def test_slurm_says_that_there_are_others(change, expected):
  assert joining.found(SLURM | change) == expected


@contextlib.contextmanager
def metadata(values, failures=types.MappingProxyType({})):
  """A server as Google's machines have one; yields its address."""
  failures = dict(failures)

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      name = self.path.rpartition("/")[2]
      text = values.get(name)
      if failures.get(name):
        failures[name] -= 1
        self.send_response(503)
        self.end_headers()
        return
      asked = self.headers["Metadata-Flavor"] == "Google"
      self.send_response(200 if asked and text is not None else 404)
      self.end_headers()
      self.wfile.write((text or "").encode())

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f"localhost:{server.server_port}"
  finally:
    server.shutdown()
    server.server_close()


ONE_HOST = {"worker-network-endpoints": "a:b:10.0.0.1"}
HOSTS = {"worker-network-endpoints": "a:b:10.0.0.1,a:b:10.0.0.2"}


@pytest.mark.parametrize(
  ("values", "environment", "expected"),
  [
    (HOSTS, {}, {}),
    (ONE_HOST, {}, None),
    # Two slices of one host each.
    (ONE_HOST | {"tpu-env": "A: '1'\nMEGASCALE_NUM_SLICES: '2'\n"}, {}, {}),
    ({}, {}, None),
    # What JAX notes where there are no TPUs.
    (HOSTS, {"TPU_SKIP_MDS_QUERY": "1"}, None),
    (HOSTS, {"COLAB_RELEASE_TAG": "release-colab"}, None),
    (HOSTS, {"JAX_PLATFORMS": "cpu"}, None),
    # Kubernetes says it without a server.
    ({}, {"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
    (HOSTS, {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({}, {"MEGASCALE_NUM_SLICES": "2"}, {}),
  ],
)
def test_a_pod_says_that_there_are_others(values, environment, expected):
  with metadata(values) as address:
    found = joining.found({"GCE_METADATA_IP": address} | environment)
  assert found == expected


def test_a_host_whose_server_is_busy_is_not_alone(monkeypatch):
  waits = []
  monkeypatch.setattr(retrying.time, "sleep", waits.append)
  with metadata(HOSTS, {"worker-network-endpoints": 2}) as address:
    assert joining.found({"GCE_METADATA_IP": address}) == {}
  assert len(waits) == 2
  with (
    metadata(HOSTS, {"worker-network-endpoints": 99}) as address,
    pytest.raises(OSError, match="503"),
  ):
    joining.found({"GCE_METADATA_IP": address})


@pytest.mark.parametrize(
  ("arguments", "error"),
  [
    ({"coordinator": "a:1"}, "num_processes, process_id is not given"),
    (
      {"coordinator": "a", "num_processes": 2, "process_id": 0},
      "coordinator='a' is not a host with a port",
    ),
    (
      {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
      "process_id=2 is not from 0",
    ),
    (
      {
        "coordinator": "a:1",
        "num_processes": 2,
        "process_id": 1,
        "distributed": False,
      },
      "distributed=False, but coordinator",
    ),
    (
      {
        "coordinator": "a:1",
        "num_processes": 2,
        "process_id": 1,
        "wait_limit": 1,
      },
      "wait_limit=1 is too short",
    ),
  ],
)
def test_what_does_not_fit_is_said_before_anything_is_joined(arguments, error):
  with pytest.raises(ValueError, match=error), joining.joined(**arguments):
    pass


def test_an_environment_that_says_half_is_told_what_to_pass(monkeypatch):
  def initialize(**arguments):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(joining.jax.distributed, "initialize", initialize)
  monkeypatch.setattr(joining, "found", lambda environment: {})
  error = r"does not say all.* coordinator_address .*Pass --coordinator"
  with pytest.raises(ValueError, match=error), joining.joined():
    pass
  # What would end this process later.
  left = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
  assert all(timer.finished.is_set() for timer in left)


def test_a_process_is_alone_where_nothing_says_otherwise(monkeypatch):
  monkeypatch.setattr(joining, "found", lambda environment: None)
  monkeypatch.delattr(joining.jax.distributed, "initialize")
  with joining.joined():
    pass
  monkeypatch.setattr(joining, "found", lambda environment: {})
  with joining.joined(distributed=False):
    pass
