"""Paths as people write them: local, of the home folder, and of a bucket."""

import json
import shlex

import jax
import ml_collections
import numpy as np
import pytest
from etils import epath
from fsspec.implementations import memory

import storage
import tasks
from input_pipeline import prepared
from training import checkpoints, metrics, plots, records, summary


def test_a_path_is_what_a_person_writes(monkeypatch):
  monkeypatch.setenv("HOME", "/home/somebody")
  assert str(storage.path("~/runs/a")) == "/home/somebody/runs/a"
  assert str(storage.path("runs/a b")) == "runs/a b"
  for url in ("gs://bucket/runs/a", "s3://bucket/~/a"):
    path = storage.path(url)
    assert str(path) == url
    assert str(storage.absolute(path) / "b") == f"{url}/b"
  assert storage.absolute(storage.path("a")).is_absolute()
  with pytest.raises(ValueError, match=r"'memory://a' is a URL of an unknown"):
    storage.path("memory://a")


@pytest.mark.parametrize("path", ["a", "my runs/a", "it's", "a;b$c", "~/a"])
def test_a_path_in_a_command_can_be_pasted(path):
  command = f"python eval.py --weights={storage.quote(path)}"
  assert shlex.split(command)[2] == f"--weights={path}"


def test_commands_for_data_sets_can_be_pasted(tmp_path):
  folder = tmp_path / "my data"
  for name in ("imagenet2012", "mnist"):
    with pytest.raises(ValueError, match="is not prepared") as error:
      prepared.load_builder(name, epath.Path(folder), ())
    assert str(error.value).count(storage.quote(folder)) == 1


class Bucket(memory.MemoryFileSystem):
  """Objects that appear whole when they are closed, and cannot grow."""

  store = {}  # noqa: RUF012, as fsspec's class has it.
  pseudo_dirs = [""]  # noqa: RUF012

  def _open(self, path, mode="rb", **options):
    if "a" in mode:
      raise NotImplementedError("an object cannot grow")
    return super()._open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch):
  """The URL of a folder in a bucket that lives in memory."""
  monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)
  backend = type(epath.backend.fsspec_backend)
  monkeypatch.setattr(backend, "_get_filesystem", lambda self, name: Bucket())
  Bucket.store.clear()
  return "gs://bucket/my runs/a"


def test_what_a_run_writes_beside_checkpoints_is_in_the_bucket(
  bucket, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = ml_collections.ConfigDict(dict(seed=0, sizes=(1, 2)))
  mesh = jax.make_mesh((4,), ("data",))
  for step in (1, 2):
    records.check_workdir(
      bucket, config, defaults=lambda _: config, override=False
    )
    records.write_config(bucket, config)
    records.write_files(bucket, {"vocabulary": b"ab"})
    records.StartRecord(bucket, mesh, {}).write_seconds(3.0)
    with metrics.MetricWriter(
      bucket, resume_step=step - 1, evaluated=True
    ) as writer:
      writer.write(step, {"train/loss": 0.5, "train/accuracy": 0.1})
      writer.flush()
      # Before a checkpoint that is past it.
      assert metrics.read_metrics(bucket)[-1]["step"] == step
      row = {"loss": 0.5, "accuracy": 0.5, "examples": 2}
      row |= {"damaged": 0, "unlabelled": 0}
      writer.write(step, {f"eval/{k}": v for k, v in row.items()})
  assert records.load_config(bucket, lambda _: config) == config
  records.check_files(bucket, {"vocabulary": b"ab"})
  assert [r["step"] for r in metrics.read_metrics(bucket)] == [1, 1, 2, 2]
  assert len(json.loads(storage.path(f"{bucket}/run.json").read_text())) == 2
  events = list(storage.path(f"{bucket}/tensorboard").iterdir())
  assert len(events) == 2
  assert all(len(event.read_bytes()) > 100 for event in events)
  with pytest.raises(records.ConfigMismatchError, match="seed: 0 -> 1"):
    records.check_workdir(
      bucket,
      ml_collections.ConfigDict(dict(seed=1, sizes=(1, 2))),
      defaults=lambda _: config,
      override=False,
    )
  monkeypatch.setattr(
    plots, "plot_curves", lambda rows, names, file: file.write(b"x")
  )
  summary.write_curves(bucket, ["loss"])
  store = ml_collections.ConfigDict(
    dict(directory=f"{bucket}/checkpoints"), convert_dict=False
  )
  store.steps, store.best_step = lambda: [2], lambda: 2
  task = tasks.find("classification")
  said = summary.describe_run(task, bucket, store, ["curves.png"])
  assert f"{bucket}/curves.png" in said
  assert shlex.split(said)[-1] == f"--weights={bucket}"
  # Nothing was taken for a local folder.
  assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_a_bucket_are_looked_for_there(bucket):
  config = ml_collections.ConfigDict(dict(keep_last=1, best_metric="accuracy"))
  store = checkpoints.Checkpoints(
    bucket, config, {"accuracy": "max"}, read_only=True
  )
  assert str(store.directory) == f"{bucket}/checkpoints"
  assert store.steps() == []


def test_a_file_of_a_bucket_grows_by_being_replaced(bucket):
  path = storage.path(bucket) / "rows"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(b"one ")
  file = storage.GrowingFile(path, append=True)
  file.write(b"two ")
  assert path.read_bytes() == b"one "
  file.flush()
  assert path.read_bytes() == b"one two "
  file.write(b"three")
  file.close()
  assert path.read_bytes() == b"one two three"


def test_a_folder_is_copied_to_a_bucket(bucket, tmp_path):
  (tmp_path / "a" / "b").mkdir(parents=True)
  (tmp_path / "a" / "b" / "file").write_bytes(bytes(3))
  storage.upload(str(tmp_path), storage.path(bucket) / "profile")
  copy = storage.path(bucket) / "profile" / "a" / "b" / "file"
  np.testing.assert_array_equal(list(copy.read_bytes()), [0, 0, 0])
