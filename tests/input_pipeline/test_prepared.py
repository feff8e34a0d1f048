import shutil
import subprocess
import sys

import pytest

from input_pipeline import prepared

BUILT_IN = ("digits", "fake")


def load(name, data_dir):
  return prepared.load_builder(name, data_dir, BUILT_IN)


def test_data_dir_is_argument_then_environment_then_home(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "/from/environment")
  monkeypatch.setenv("HOME", "/home/me")
  assert str(prepared.get_data_dir("~/here")) == "/home/me/here"
  assert str(prepared.get_data_dir(None)) == "/from/environment"
  monkeypatch.delenv("TFDS_DATA_DIR")
  assert str(prepared.get_data_dir(None)) == "/home/me/tensorflow_datasets"


def test_takes_the_newest_version_or_the_one_asked_for(tmp_path, write_tiny):
  write_tiny([b"x"])
  tiny = tmp_path / "tiny"
  for version in ("1.0.9", "1.0.10"):
    shutil.copytree(tiny / "1.0.0", tiny / version)
  assert load("tiny", tmp_path).data_path.name == "1.0.10"
  assert load("tiny:1.0.9", tmp_path).data_path.name == "1.0.9"
  with pytest.raises(ValueError, match=r"1\.0\.0, 1\.0\.9, 1\.0\.10"):
    load("tiny:2.0.0", tmp_path)


def test_configs_are_part_of_the_name(tmp_path, write_tiny):
  write_tiny([b"x"])
  tiny = tmp_path / "tiny"
  (tmp_path / "moved").mkdir()
  (tiny / "1.0.0").rename(tmp_path / "moved" / "1.0.0")
  (tmp_path / "moved").rename(tiny / "small")
  assert prepared.list_names(tmp_path) == ["tiny/small"]
  assert load("tiny/small:1.0.0", tmp_path).info.splits["train"].num_examples
  with pytest.raises(ValueError, match="one of its configs: tiny/small"):
    load("tiny", tmp_path)


def test_absent_name_lists_near_names_and_says_how_to_prepare(digits_dir):
  with pytest.raises(ValueError, match=r"Did you mean digits\?") as error:
    load("digit", digits_dir)
  assert "digits, fake" in str(error.value)
  with pytest.raises(ValueError, match="tfds build mnist --data_dir"):
    load("mnist", digits_dir)


def test_missing_data_dir_is_no_crash(tmp_path):
  with pytest.raises(ValueError, match="not prepared"):
    load("mnist", tmp_path / "nowhere")


def test_data_dir_is_the_data_set_itself(digits_dir):
  for folder in (digits_dir / "digits", *digits_dir.glob("digits/1*")):
    with pytest.raises(ValueError, match="data set itself: give the folder"):
      load("mnist", folder)


def test_version_that_is_not_whole(tmp_path, write_tiny):
  write_tiny([b"x"])
  (tmp_path / "tiny" / "1.0.0" / "features.json").unlink()
  with pytest.raises(ValueError, match=r"tiny/1\.0\.0 lacks features\.json"):
    load("tiny", tmp_path)


def test_imagenet_says_how_to_prepare_it(tmp_path):
  with pytest.raises(ValueError, match="prepare_imagenet --name=imagenet_v2 "):
    load("imagenet_v2", tmp_path)


def test_tfrecord_says_how_to_convert(tmp_path, write_tiny):
  write_tiny([b"x"])
  info = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
  text = info.read_text()
  assert "array_record" in text
  info.write_text(text.replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match="stored as tfrecord") as error:
    load("tiny", tmp_path)
  assert "convert_format" in str(error.value)
  (tmp_path / "tiny").rename(tmp_path / "imagenet_tiny")
  with pytest.raises(ValueError, match="prepare_imagenet --name=imagenet_tiny"):
    load("imagenet_tiny", tmp_path)


def test_reading_does_not_ask_the_network_or_import_tensorflow(digits_dir):
  code = f"""
import socket, sys
def refuse(*args, **kwargs):
  raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from input_pipeline.images import default_config, train_iterator
config = default_config()
config.data_dir = {str(digits_dir)!r}
next(train_iterator(config, seed=0, global_batch_size=4))
assert "tensorflow" not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", code], capture_output=True
  )
  assert done.returncode == 0, done.stderr.decode()
  assert done.stdout == done.stderr == b""
