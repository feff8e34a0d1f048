import errno
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from storage import retrying
from training import checkpoints

CONFIG = ml_collections.ConfigDict(dict(keep_last=2, best_metric="accuracy"))
DIRECTIONS = {"accuracy": "max", "loss": "min"}


def make_state(step):
  rng = np.random.default_rng(step)
  return {
    "step": jnp.int32(step),
    "params": {"kernel": jnp.asarray(rng.normal(size=(33, 17)), jnp.float32)},
    "key": jax.random.key(step),
    "ema": None,
    "empty": {},
  }


def shapes(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


@pytest.fixture
def store(tmp_path):
  store = checkpoints.Checkpoints(str(tmp_path), CONFIG, DIRECTIONS)
  yield store
  store.close()


def save(store, steps, metrics=None):
  for step in steps:
    accuracy = (metrics or {}).get(step)
    store.save(
      step,
      make_state(step),
      {"data": {"next_index": step}},
      None if accuracy is None else {"accuracy": accuracy},
    )
  store.wait()


def reopen(store):
  return checkpoints.Checkpoints(
    str(store.directory.parent), CONFIG, DIRECTIONS
  )


def assert_is_step(restored, step):
  state, record = restored
  expected = make_state(step)
  np.testing.assert_array_equal(
    state["params"]["kernel"], expected["params"]["kernel"]
  )
  np.testing.assert_array_equal(
    jax.random.key_data(state["key"]), jax.random.key_data(expected["key"])
  )
  assert int(state["step"]) == step
  assert record == {"data": {"next_index": step}}


def largest_file(directory):
  files = [p for p in Path(directory).rglob("*") if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def truncate(directory):
  path = largest_file(directory)
  os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(directory):
  path = largest_file(directory)
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 4
  path.write_bytes(raw)


def lose_the_record(directory):
  shutil.rmtree(directory / "record")


@pytest.fixture
def storage_fails(monkeypatch):
  """Has the next so many checkpoints fail as they get their name."""
  left, rename = [0], os.rename

  def flaky(source, target, **options):
    if left[0] and str(target).rpartition("/")[2].isdecimal():
      left[0] -= 1
      raise OSError(errno.ETIMEDOUT, "the storage does not answer")
    return rename(source, target, **options)

  monkeypatch.setattr(os, "rename", flaky)
  monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
  return lambda times: left.__setitem__(0, times)


def save_one(store, step):
  store.save(step, make_state(step), {"data": {"next_index": step}})


def test_the_last_checkpoint_is_written_again(store, storage_fails, caplog):
  storage_fails(3)
  save(store, [1])
  assert store.steps() == [1]
  assert "writing the checkpoint of step 1 failed (try 3 of 8)" in caplog.text
  state = make_state(1)
  assert_is_step(reopen(store).restore(shapes(state)), 1)


def test_a_missed_checkpoint_does_not_end_a_run(store, storage_fails, caplog):
  storage_fails(2)
  for step in (1, 2, 3):
    save_one(store, step)
  store.wait()
  assert store.steps() == [3]
  said = "step 2 could not be written: .*does not answer. The run goes on"
  assert re.search(said, caplog.text)
  # What was begun is gone once the next start saves.
  save(reopen(store), [4])
  assert sorted(os.listdir(store.directory)) == ["3", "4"]


def test_a_storage_that_stays_away_ends_a_run(store, storage_fails):
  storage_fails(100)
  for step in range(1, 5):
    save_one(store, step)
  with pytest.raises(checkpoints.CheckpointError, match="does not answer"):
    save_one(store, 5)
  storage_fails(0)


def test_arrays_that_are_gone_are_not_written_again(store, storage_fails):
  storage_fails(1)
  state = {"a": jnp.ones(3)}
  store.save(1, state, {})
  state["a"].delete()
  with pytest.raises(
    checkpoints.CheckpointError, match=r"not answer The arrays are gone"
  ):
    store.wait()


def test_a_checkpoint_that_is_not_read_at_once_is_not_damaged(
  store, monkeypatch
):
  save(store, [1, 2])
  left, restore = [2], ocp.Checkpointer.restore

  def flaky(self, directory, *args, **kwargs):
    if left[0]:
      left[0] -= 1
      raise ConnectionResetError("by peer")
    return restore(self, directory, *args, **kwargs)

  monkeypatch.setattr(ocp.Checkpointer, "restore", flaky)
  monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
  assert_is_step(store.restore(shapes(make_state(2))), 2)
  assert store.steps() == [1, 2]


def test_nothing_saved_restores_nothing(store):
  assert store.restore(shapes(make_state(0))) is None


def test_round_trip(store):
  save(store, [3])
  assert_is_step(reopen(store).restore(shapes(make_state(0))), 3)


def test_keeps_the_last_and_the_best(store):
  save(store, range(1, 8), {2: 0.5, 4: 0.9, 6: 0.7})
  assert store.steps() == [4, 6, 7]
  assert store.best_step() == 4
  # A process started later knows it, too.
  again = reopen(store)
  assert again.best_step() == 4
  save(again, [8, 9], {9: 0.95})
  assert again.steps() == [8, 9]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_the_record])
def test_a_damaged_checkpoint_is_put_aside(store, damage):
  save(store, [1, 2])
  damage(store.directory / "2")
  again = reopen(store)
  assert_is_step(again.restore(shapes(make_state(0))), 1)
  assert again.steps() == [1]
  assert (store.directory / "2.damaged").exists()
  # The run comes past the same step again.
  save(again, [2])
  assert_is_step(reopen(store).restore(shapes(make_state(0))), 2)


def test_all_damaged_is_an_error_and_changes_nothing(store):
  save(store, [1, 2])
  for step in ("1", "2"):
    truncate(store.directory / step)
  before = sorted(Path(store.directory).rglob("*"))
  with pytest.raises(
    checkpoints.CheckpointError, match=r"nothing was changed.*Step 2.*Step 1"
  ):
    reopen(store).restore(shapes(make_state(0)))
  assert sorted(Path(store.directory).rglob("*")) == before


def test_another_model_is_an_error_and_changes_nothing(store):
  save(store, [1, 2])
  other = make_state(0)
  other["params"]["kernel"] = jnp.zeros((5, 5))
  other["params"]["bias"] = jnp.zeros(3)
  with pytest.raises(
    checkpoints.CheckpointError,
    match=r"step 2 .* does not fit the model or its optimizer: params/bias is "
    r"not there in the checkpoint and float32 \(3,\) in this run; "
    r"params/kernel is float32 \(33, 17\) in the checkpoint and float32 "
    r"\(5, 5\) in this run",
  ) as error:
    reopen(store).restore(shapes(other))
  assert "damaged" not in str(error.value)
  assert reopen(store).steps() == [1, 2]


def test_a_step_of_choice_is_read_without_putting_aside(store):
  save(store, [1, 2])
  truncate(store.directory / "2")
  again = reopen(store)
  assert_is_step(again.restore(shapes(make_state(0)), step=1), 1)
  with pytest.raises(checkpoints.CheckpointError, match="Step 2"):
    again.restore(shapes(make_state(0)), step=2)
  assert again.steps() == [1, 2]


def test_a_save_that_was_cut_off_is_not_a_checkpoint(store):
  save(store, [1])
  shutil.copytree(
    store.directory / "1", store.directory / "2.orbax-checkpoint-tmp"
  )
  again = reopen(store)
  assert again.steps() == [1]
  assert_is_step(again.restore(shapes(make_state(0))), 1)


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_the_best_is_by_the_metric_s_direction(tmp_path, name):
  config = ml_collections.ConfigDict(dict(keep_last=1, best_metric=name))
  store = checkpoints.Checkpoints(str(tmp_path), config, DIRECTIONS)
  for step, loss in enumerate((0.5, np.nan, 0.1, 0.9, 0.8), start=1):
    result = {"loss": loss, "accuracy": 1 - loss}
    store.save(step, {"w": jnp.full(3, loss)}, {}, metrics=result)
  store.save(6, {"w": jnp.zeros(3)}, {})
  store.wait()
  # The last, without metrics, and the best: neither NaN nor the worst.
  assert store.steps() == [3, 6]
  assert store.best_step() == 3
  store.close()


def test_a_run_of_nan_has_no_best(tmp_path):
  store = checkpoints.Checkpoints(str(tmp_path), CONFIG, DIRECTIONS)
  store.save(1, {"w": jnp.zeros(3)}, {}, metrics={"accuracy": np.nan})
  store.wait()
  assert store.best_step() is None
  store.close()


def test_an_unknown_metric_is_refused(tmp_path):
  config = ml_collections.ConfigDict(dict(keep_last=1, best_metric="acuracy"))
  with pytest.raises(ValueError, match=r"'acuracy'.*mean accuracy\?.* loss"):
    checkpoints.Checkpoints(str(tmp_path), config, DIRECTIONS)
