"""One of the processes that `test_hosts.py` starts: a pod of some hosts.

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
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from training import (
  checkpoints,
  evaluation,
  hosts,
  joining,
  preemption,
  sharding,
)

port, index, count, folder, data_dir, stage = sys.argv[1:]
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
  # What a killed process left is no candidate, wherever it was seen.
  if FIRST:
    (store.directory / "9.orbax-checkpoint-tmp").mkdir()
  assert store.restore(like)[1] == {"step": 2}
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


def check_agreement():
  """Hosts that are not of one run are named, by all of them."""
  hosts.check_same({"git commit": "68d8166"})
  with pytest.raises(hosts.HostsError, match=r"process 1 .* another config"):
    hosts.check_same({"config": "batch_size: " + ("64" if FIRST else "32")})
  hosts.check_folder(str(FOLDER))
  own = FOLDER / f"disk_of_{index}"
  own.mkdir()
  with pytest.raises(hosts.HostsError, match=r"process 1 .* does not see"):
    hosts.check_folder(str(own))
  assert not list(own.iterdir())


def check_parts():
  """What needs no training, and so little time."""
  shared = hosts.share({"process": int(index)})
  assert shared == [{"process": 0}, {"process": 1}]
  check_agreement()
  check_rows()
  check_restoring()
  check_stopping()


def slowed(last):
  """Batches that take long enough for a run to be killed between them.

  Number `last` takes longer than any test waits, so that no run is over before.
  """
  original, taken = evaluation.put_batch, 0

  def put_slowly(batch, mesh):
    nonlocal taken
    taken += 1
    time.sleep(0.05 if taken < last else 600)
    return original(batch, mesh)

  return mock.patch.object(evaluation, "put_batch", put_slowly)


def share_what_repeats():
  from tests.train_runs import Repeated

  repeated = Repeated()
  repeated.share(pytest.MonkeyPatch())
  return repeated


def train(config, name):
  import train as program

  return program.train_and_evaluate(config, str(FOLDER / name))


def check_stopped():
  repeated = share_what_repeats()
  config = make_config()
  if stage != "rest":
    kind, number = stage.split(":")
    signal_from(kind, int(number))
    train(config, "stopped")
    return
  state = train(config, "stopped")
  whole = train(config, "whole")
  check_same(state, whole)
  check_same(train(config, "killed"), whole)
  with unreadable(8):
    again = train(config, "whole")
  check_same(again, whole)
  repeated.finish_as_users_do(pytest.MonkeyPatch())
  # Both processes hold all rows, of the last evaluated batch fewer.
  across = {"mesh.data": 1, "mesh.model": 4, "eval_batch_size": 100}
  train(make_config(**across), "across")


def train_until_killed():
  share_what_repeats()
  # Of 44 in all.
  with slowed(28):
    train(make_config(), "killed")


def check_four():
  """Three of four processes have fewer rows of the last batch, one none."""
  share_what_repeats()
  config = make_config(eval_batch_size=100)
  if stage == "four":
    train(config, "four_whole")
    with slowed(14):  # Of 16.
      train(config, "four_killed")
  else:
    state = train(config, "four_killed")
    check_same(state, train(config, "four_whole"))


def hang():
  """One process waits for what never comes; each of the others for it."""
  if stage == "late":
    time.sleep(0 if FIRST else 60)
    hosts.share(0)
  hosts.went_on()
  if not FIRST:
    if stage == "error":
      raise ValueError("the disk of one host")
    time.sleep(60)
  hosts.went_on()
  time.sleep(60)


STAGES = {
  "parts": check_parts,
  "kill": train_until_killed,
  "four": check_four,
  "four_rest": check_four,
  "hang": hang,
  "late": hang,
  "error": hang,
}
with joining.joined(
  coordinator=f"localhost:{port}",
  num_processes=int(count),
  process_id=int(index),
  wait_limit=8 if stage in ("hang", "late", "error") else 300,
):
  STAGES.get(stage, check_stopped)()
  (FOLDER / f"{stage}_passed_{index}").touch()
