import json
import os
import shlex
import shutil
import sys

import jax
import ml_collections
import pytest
from jax.sharding import AxisType

from training import records


def make_config(**optimizer):
  return ml_collections.ConfigDict(
    dict(seed=0, optimizer=dict(name="sgd", rate=0.1) | optimizer, sizes=(1, 2))
  )


def claim(workdir, config, override=False):
  records.check_workdir(
    workdir, config, defaults=lambda _: make_config(), override=override
  )
  records.write_config(workdir, config)


def load(workdir):
  return records.load_config(str(workdir), lambda _: make_config())


def test_the_same_config_may_go_on(tmp_path):
  workdir = str(tmp_path / "new" / "run")
  for _ in range(2):
    claim(workdir, make_config())
  assert load(workdir) == make_config()


def forget(workdir, *names):
  """Makes a run one that was saved before its config had these fields."""
  path = workdir / "config.json"
  saved = json.loads(path.read_text())
  for name in names:
    *groups, field = name.split(".")
    inner = saved
    for group in groups:
      inner = inner[group]
    del inner[field]
  path.write_text(json.dumps(saved))


def test_a_run_older_than_a_field_has_its_default_and_says_so(tmp_path, caplog):
  claim(str(tmp_path), make_config(name="adam"))
  forget(tmp_path, "optimizer.rate", "sizes")
  assert load(tmp_path) == make_config(name="adam")
  assert f"The run in {tmp_path} is older than some fields" in caplog.text
  assert "optimizer.rate: 0.1; sizes: [1, 2]" in caplog.text
  # It goes on with the default, and with nothing else.
  with pytest.raises(
    records.ConfigMismatchError, match=r"1 field.*optimizer.rate: 0.1 -> 0.2"
  ):
    claim(str(tmp_path), make_config(name="adam", rate=0.2))
  claim(str(tmp_path), make_config(name="adam"))
  caplog.clear()
  assert load(tmp_path) == make_config(name="adam")
  assert not caplog.text


def test_another_config_is_refused_with_every_difference(tmp_path):
  claim(str(tmp_path), make_config())
  other = make_config(rate=0.2, momentum=0.9)
  del other.seed
  with pytest.raises(records.ConfigMismatchError) as error:
    claim(str(tmp_path), other)
  for difference in (
    "3 field(s) differ",
    "optimizer.rate: 0.1 -> 0.2",
    "optimizer.momentum: not there -> 0.9",
    "seed: 0 -> not there",
    "--override_config",
  ):
    assert difference in str(error.value)
  assert load(tmp_path) == make_config()
  claim(str(tmp_path), other, override=True)
  other.seed = 0
  assert load(tmp_path) == other


def test_another_mesh_is_the_same_run(tmp_path, capsys):
  config = make_config()
  config.mesh = ml_collections.ConfigDict(dict(data=8, fsdp=1))
  config.sharding_rules = ()
  claim(str(tmp_path), config)
  config.mesh.fsdp, config.sharding_rules = 2, (("a", (None, "model")),)
  claim(str(tmp_path), config)
  said = capsys.readouterr().out
  assert (
    "on other devices than before: mesh.fsdp: 1 -> 2; sharding_rules" in said
  )
  config.mesh_of_mine = 1
  with pytest.raises(records.ConfigMismatchError, match="1 field"):
    claim(str(tmp_path), config)


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=r"workdir=.*file/run.*may write"):
    claim(str(tmp_path / "file" / "run"), make_config())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_workdir_is_an_error(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(ValueError, match="cannot be written"):
    claim(str(tmp_path), make_config())


def test_no_run_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="holds no run"):
    load(tmp_path)


def test_files_of_a_run_must_not_change(tmp_path):
  workdir, files = str(tmp_path), {"vocabulary.json": b"[1]"}
  records.check_files(workdir, files)
  records.write_files(workdir, files)
  records.check_files(workdir, files)
  with pytest.raises(
    records.ConfigMismatchError, match=r"weights=.*another vocabulary\.json"
  ):
    records.check_files(workdir, {"vocabulary.json": b"[2]"}, "weights")


def test_each_start_is_recorded(tmp_path):
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  for number in range(2):
    start = records.StartRecord(str(tmp_path), mesh, {"unit": "image"})
    assert start.earlier == 2.5 * number
    start.write_seconds(1.0)
    start.write_seconds(2.5)
  starts = json.loads((tmp_path / "run.json").read_text())
  assert [start["seconds"] for start in starts] == [2.5, 2.5]
  assert starts[0]["versions"]["jax"] == jax.__version__
  assert starts[0]["mesh"] == {"data": 4}
  assert starts[0]["task"] == {"unit": "image"}
  assert starts[0]["command"] == shlex.join([sys.executable, *sys.argv])


def test_without_git_there_is_no_commit(monkeypatch):
  monkeypatch.setattr(shutil, "which", lambda name: None)
  assert records.git_commit() is None
