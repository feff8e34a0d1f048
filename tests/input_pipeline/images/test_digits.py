import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from input_pipeline import prepared
from input_pipeline.images import decode, digits

PREPARE = """
import sys
from etils import epath
from input_pipeline.images import digits
digits.prepare(epath.Path(sys.argv[1]))
"""

# Dies as from `kill -9` after 1000 of the 1797 images.
PREPARE_AND_DIE = """
import os, signal, sys
from etils import epath
from input_pipeline.images import decode, digits
encode, calls = decode.encode_image, []
def encode_or_die(image):
  calls.append(image)
  if len(calls) > 1000:
    os.kill(os.getpid(), signal.SIGKILL)
  return encode(image)
decode.encode_image = encode_or_die
digits.prepare(epath.Path(sys.argv[1]))
"""


def start(code, data_dir):
  return subprocess.Popen(
    [sys.executable, "-c", code, str(data_dir)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def read_all(data_dir, split):
  builder = prepared.load_builder("digits", data_dir, ())
  records = list(builder.as_data_source(split))
  return (
    np.stack([record["image"] for record in records]),
    np.array([record["label"] for record in records]),
  )


@pytest.mark.parametrize(
  ("split", "rows"), [("train", slice(1437)), ("test", slice(1437, 1797))]
)
def test_equals_scikit_learn(digits_dir, split, rows):
  expected = datasets.load_digits()
  images, labels = read_all(digits_dir, split)
  # 16 levels of 255 / 16 are told apart after rounding.
  np.testing.assert_array_equal(
    np.round(images[..., 0] * (16 / 255)), expected.images[rows]
  )
  assert images.max() == 255
  np.testing.assert_array_equal(labels, expected.target[rows])


def test_prepares_once(digits_dir, monkeypatch):
  monkeypatch.setattr(decode, "encode_image", None)
  digits.prepare(digits_dir)


def test_preparing_says_nothing(tmp_path, capfd):
  digits.prepare(tmp_path)
  captured = capfd.readouterr()
  assert captured.out == captured.err == ""


# Starts several programs.
@pytest.mark.slow
def test_processes_prepare_at_the_same_time(tmp_path):
  processes = [start(PREPARE, tmp_path) for _ in range(2)]
  for process in processes:
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()
  assert len(read_all(tmp_path, "train")[1]) == 1437
  assert [p.name for p in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_loser_of_a_race_takes_what_the_winner_wrote(tmp_path, monkeypatch):
  encode = decode.encode_image

  def encode_after_another_process(image):
    monkeypatch.setattr(decode, "encode_image", encode)
    digits.prepare(tmp_path)
    return encode(image)

  monkeypatch.setattr(decode, "encode_image", encode_after_another_process)
  digits.prepare(tmp_path)
  assert len(read_all(tmp_path, "test")[1]) == 360


def test_killed_preparation_leaves_nothing_broken(tmp_path):
  process = start(PREPARE_AND_DIE, tmp_path)
  process.communicate(timeout=240)
  assert process.returncode == -9
  assert prepared.list_names(tmp_path) == []
  digits.prepare(tmp_path)
  assert len(read_all(tmp_path, "train")[1]) == 1437
