"""Fashion-MNIST of small files that are made here, and Debian's if there."""

import gzip

import numpy as np
import pytest

from input_pipeline import images, prepared
from input_pipeline.images import decode, fashion_mnist


def _idx(array):
  shape = np.array(array.shape, ">u4").tobytes()
  return bytes((0, 0, 8, array.ndim)) + shape + array.tobytes()


def _write(name, data):
  (fashion_mnist.FOLDER / name).write_bytes(gzip.compress(data))


@pytest.fixture
def made(tmp_path, monkeypatch):
  """{split: (images, labels)} of a folder like the package's."""
  folder = tmp_path / "package"
  folder.mkdir()
  monkeypatch.setattr(fashion_mnist, "FOLDER", folder)
  rng = np.random.default_rng(0)
  made = {}
  for split, number in (("train", 5), ("test", 3)):
    pixels = rng.integers(0, 256, (number, 28, 28), np.uint8)
    labels = rng.integers(0, 10, number, np.uint8)
    names = fashion_mnist._FILES[split]
    for name, array in zip(names, (pixels, labels), strict=True):
      _write(name, _idx(array))
    made[split] = pixels, labels
  return made


def test_what_is_written_is_what_was_read(made, tmp_path):
  fashion_mnist.prepare(tmp_path)
  builder = prepared.load_builder("fashion_mnist", tmp_path, ())
  for split, (pixels, labels) in made.items():
    records = list(builder.as_data_source(split))
    for record, image, label in zip(records, pixels, labels, strict=True):
      np.testing.assert_array_equal(record["image"][..., 0], image)
      assert record["label"] == label
  assert builder.info.features["label"].names[9] == "Ankle boot"


def test_prepares_once_and_leaves_what_is_there(made, tmp_path, monkeypatch):
  del made
  fashion_mnist.prepare(tmp_path)
  # TFDS's own has a greater version.
  ours = tmp_path / "fashion_mnist/1.0.0"
  ours.rename(tmp_path / "fashion_mnist/3.0.1")
  monkeypatch.setattr(decode, "encode_image", None)
  monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path / "nowhere")
  fashion_mnist.prepare(tmp_path)
  assert not ours.exists()


def test_the_room_has_it_by_name(made, tmp_path):
  config = images.default_config()
  config.name, config.channels = "fashion_mnist", 1
  config.data_dir = str(tmp_path)
  assert images.num_train_examples(config) == len(made["train"][1])
  assert images.dataset_info(config).class_names == fashion_mnist.CLASSES


def test_errors_say_what_to_do(made, tmp_path, monkeypatch):
  with monkeypatch.context() as other:
    other.setattr(fashion_mnist, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="apt-get install dataset-fashion-mn"):
      fashion_mnist.prepare(tmp_path)
  assert not (tmp_path / "fashion_mnist").exists()
  pixels, labels = made["train"]
  images_name, labels_name = fashion_mnist._FILES["train"]

  def load(first, second):
    _write(images_name, first)
    _write(labels_name, second)
    return fashion_mnist.load("train")

  whole = _idx(pixels), _idx(labels)
  np.testing.assert_array_equal(load(*whole)[0], pixels)
  for first, second, message in (
    (whole[0][:-1], whole[1], "is damaged: it has 3935 bytes, which begin"),
    (whole[1], whole[1], "must be an IDX file of 3 axes"),
    (whole[0], _idx(labels[:4]), r"images \(5, 28, 28\) .* 4 labels"),
    (_idx(pixels[:, 1:]), whole[1], "of 28 x 28 pixels"),
    (whole[0], _idx(labels * 0 + 10), "has the label 10; they are 0 to 9"),
  ):
    with pytest.raises(ValueError, match=message):
      load(first, second)
  load(*whole)
  cut = fashion_mnist.FOLDER / labels_name
  cut.write_bytes(cut.read_bytes()[:-9])
  with pytest.raises(ValueError, match=f"{labels_name} is damaged"):
    fashion_mnist.load("train")


def test_the_package():
  if not fashion_mnist.FOLDER.exists():
    pytest.skip("Debian's package dataset-fashion-mnist is not installed")
  pixels, labels = fashion_mnist.load("test")
  assert pixels.shape == (10_000, 28, 28)
  np.testing.assert_array_equal(np.bincount(labels), [1000] * 10)
  # As in its documentation, whose first ones are a boot, a pullover, trousers.
  assert labels[:3].tolist() == [9, 2, 1]
  assert round(float(pixels.mean()) / 255, 3) == 0.287
