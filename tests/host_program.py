"""One of the two processes that `test_hosts.py` starts: a pod of two hosts.

JAX takes one notice of pre-emption in the life of a process, so each signal
needs new processes; all else that is shown of two hosts is in the last ones.
"""

import os
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

port, index, folder, data_dir, stage = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(index))

import ml_collections  # noqa: E402, JAX must know of the other process first.

from training import (  # noqa: E402, likewise.
  checkpoints,
  evaluation,
  hosts,
  preemption,
  sharding,
)

FOLDER, FIRST = Path(folder), int(index) == 0
# Of this process in an evaluation; in training it has 32.
EVAL_ROWS = 10


def make_config(**fields):
  from configs import digits

  config = digits.get_config("tiny")
  config.data.data_dir = data_dir
  config.train_for = "8 steps"
  config.evaluate_every = "4 steps"
  config.checkpoint.every = "2 steps"
  config.eval_batch_size = 20
  config.update_from_flattened_dict(fields)
  return config


def signal_from(kind, number):
  """Signals one process at its batch `number` of "train" or "eval"."""
  original, taken = evaluation.put_batch, {"train": 0, "eval": 0}

  def put_and_signal(batch, mesh):
    # By their sizes, which differ.
    taken["eval" if len(batch["label"]) == EVAL_ROWS else "train"] += 1
    if taken[kind] == number and not FIRST:
      os.kill(os.getpid(), signal.SIGTERM)
    if taken[kind] >= number:
      # The notice takes a second or so to be seen; there are few steps.
      time.sleep(2.0 if kind == "train" else 0.7)
    return original(batch, mesh)

  evaluation.put_batch = put_and_signal


def arrays(state):
  """What this process holds of a state, as numpy."""
  return jax.tree.map(
    lambda x: np.asarray(
      jax.random.key_data(x)
      if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
      else x.addressable_data(0)
    ),
    state,
  )


def check_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, arrays(a), arrays(b))


def unreadable(step):
  """What one process has instead of Orbax's restoring of a step."""
  original = ocp.Checkpointer.restore

  def restore(self, directory, *args, **kwargs):
    if not FIRST and directory.name == str(step):
      raise OSError("the disk of one host")
    return original(self, directory, *args, **kwargs)

  return mock.patch.object(ocp.Checkpointer, "restore", restore)


def check_restoring():
  """What one process cannot read, none takes; all say why."""
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  kept = ml_collections.ConfigDict(dict(keep_last=3, best_metric="accuracy"))
  store = checkpoints.Checkpoints(
    str(FOLDER / "store"), kept, {"accuracy": "max"}
  )
  for step in (1, 2, 3):
    value = jax.jit(lambda s=step: jnp.full(8, s), out_shardings=rows)()
    store.save(step, {"a": value}, {"step": step})
  store.wait()
  like = {"a": jax.ShapeDtypeStruct((8,), value.dtype, sharding=rows)}
  wrong = {"a": jax.ShapeDtypeStruct((4,), value.dtype, sharding=rows)}
  with pytest.raises(checkpoints.CheckpointError, match="does not fit"):
    store.restore(wrong)
  with unreadable(3):
    state, record = store.restore(like)
    assert record == {"step": 2}
    assert float(state["a"].addressable_data(0)[0]) == 2
  assert store.steps() == [1, 2]
  fault = "In process 1: the disk of one host"
  with unreadable(2), pytest.raises(checkpoints.CheckpointError, match=fault):
    store.restore(like, step=2)
  store.close()


def check_stopping():
  """A signal to one process stops both at the same of many polls."""
  with preemption.PreemptionGuard() as guard:
    polls = 0
    while not guard.should_stop():
      polls += 1
      if polls == 3 and not FIRST:
        os.kill(os.getpid(), signal.SIGTERM)
      # Each in its own time, as far as collectives let them.
      time.sleep(0.1 if FIRST else 0.13)
      assert polls < 1000
    assert guard.should_stop()
  assert len(set(hosts.share(polls))) == 1


def check_rows():
  """Rows go where the mesh wants them, on meshes of any order."""
  d = np.array(jax.devices())
  orders = {
    # One run of rows each, rows in turns, and a model axis across processes.
    "runs": (d, (1, 4, 1, 1, 1), 4),
    "turns": (d[[0, 2, 1, 3]], (1, 4, 1, 1, 1), 4),
    "model": (d[[0, 2, 1, 3]], (1, 2, 1, 1, 2), 8),
  }
  for name, (devices, shape, expected) in orders.items():
    mesh = jax.sharding.Mesh(
      devices.reshape(shape), sharding.AXES, axis_types=(AxisType.Auto,) * 5
    )
    rows = hosts.batch_rows(mesh, 8)
    assert len(rows) == expected, (name, rows)
    batch = {k: np.array(rows) for k in ("image", "label", "mask")}
    batch["damaged"] = np.isin(rows, [0, 1, 5])
    put = evaluation.put_batch(batch, mesh)
    found = multihost_utils.process_allgather(put["label"], tiled=True)
    np.testing.assert_array_equal(found, np.arange(8), err_msg=name)
    assert int(put["damaged"].sum()) == 3, name


def check_parts():
  """What needs no training, and so little time."""
  shared = hosts.share({"process": int(index)})
  assert shared == [{"process": 0}, {"process": 1}]
  check_rows()
  check_restoring()
  check_stopping()


def check_runs():
  import train
  from tests.train_runs import Repeated

  repeated = Repeated()
  repeated.share(pytest.MonkeyPatch())
  config = make_config()
  if stage != "rest":
    kind, number = stage.split(":")
    signal_from(kind, int(number))
  state = train.train_and_evaluate(config, str(FOLDER / "stopped"))
  if stage != "rest":
    return
  whole = train.train_and_evaluate(config, str(FOLDER / "whole"))
  check_same(state, whole)
  with unreadable(8):
    again = train.train_and_evaluate(config, str(FOLDER / "whole"))
  check_same(again, whole)
  repeated.finish_as_users_do(pytest.MonkeyPatch())
  # Both processes hold all rows.
  across = make_config(**{"mesh.data": 1, "mesh.model": 4})
  train.train_and_evaluate(across, str(FOLDER / "across"))


assert (jax.process_count(), jax.device_count()) == (2, 4)
check_parts() if stage == "parts" else check_runs()
(FOLDER / f"{stage}_passed_{index}").touch()
