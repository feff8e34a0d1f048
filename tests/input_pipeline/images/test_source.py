import itertools
import shutil

import pytest

import experiment
import train
from configs import digits as run_config
from input_pipeline import images
from input_pipeline.images import decode, source


def test_slices_of_splits(config):
  first = source.open_source(config, "train[:90%]")
  last = source.open_source(config, "train[90%:]")
  whole = source.open_source(config, "train")
  assert (len(first), len(last)) == (1293, 144)
  assert first[1292] == whole[1292]
  assert last[0] == whole[1293]


def test_record_is_encoded(config):
  record = source.open_source(config, "train")[0]
  assert record["image"].startswith(b"\x89PNG")
  assert record["label"] == 0


def test_describes_the_file_and_the_position_in_it(config):
  both = source.open_source(config, "train[10:20]+test[5:]")
  assert "digits-train" in both.describe(9)
  assert "record 19 in" in both.describe(9)
  assert "digits-test" in both.describe(10)
  assert "record 5 in" in both.describe(10)
  assert both.describe(3).startswith("record 3 of 'digits', split 'train[10:20")


def test_any_data_set_for_classification(config, write_tiny, encoded):
  config.update(name="tiny", data_dir=str(write_tiny(encoded)))
  tiny = source.open_source(config, "train")
  assert tiny.class_names == ("cat", "dog")
  assert tiny.image_shape == (None, None, 3)
  assert [tiny[i]["image"] for i in range(10)] == encoded
  assert [tiny[i]["label"] for i in range(4)] == [0, 1, 0, 1]


def test_converted_copy_beside_tfrecord_is_read(config, write_tiny, encoded):
  data_dir = write_tiny(encoded)
  info = data_dir / "tiny" / "1.0.0" / "dataset_info.json"
  text = info.read_text()
  assert '"fileFormat": "array_record"' in text
  info.write_text(
    text.replace(
      '"fileFormat": "array_record"',
      '"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]',
    )
  )
  config.update(name="tiny", data_dir=str(data_dir))
  tiny = source.open_source(config, "train")
  assert tiny[3]["image"] == encoded[3]
  assert "tiny-train.array_record" in tiny.describe(3)


@pytest.mark.parametrize("name", ["digits", "fake"])
@pytest.mark.parametrize(
  ("split", "message"),
  [
    ("tset", r"train \(1\d+\), test \(\d+\)"),
    ("train[", "cannot be read"),
    ("train[:0%]", "has no examples"),
  ],
)
def test_faults_of_splits(config, name, split, message):
  config.name = name
  with pytest.raises(ValueError, match=message):
    source.open_source(config, split)


def test_fake_is_seeded_and_sliced():
  config = images.default_config()
  config.name = "fake"
  train = source.open_source(config, "train")
  part = source.open_source(config, "train[100:110]")
  assert len(train) == 1024
  assert [part[i] for i in range(10)] == [train[i] for i in range(100, 110)]
  test = source.open_source(config, "test")
  assert all(train[i] != test[i] for i in range(20))
  assert "in memory" in train.describe(3)
  with pytest.raises(ValueError, match="must not be a sum"):
    source.open_source(config, "train+test")


def test_fake_images_tell_their_label():
  config = images.default_config()
  config.name = "fake"
  train = source.open_source(config, "train")
  pixels = [
    decode.decode_image(train[i]["image"]).astype(int) for i in range(40)
  ]

  def distance(i, j):
    return abs(pixels[i] - pixels[j]).mean()

  for i, j, k in itertools.product(range(5), range(10, 15), range(20, 25)):
    same = [x for x in (j, k) if x % 10 == i]
    other = [x for x in (j, k) if x % 10 != i]
    for x, y in itertools.product(same, other):
      assert distance(i, x) < distance(i, y)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("train_examples", 0),
    ("num_classes", 0),
    ("image_shape", (8, 8, 2)),
    ("image_shape", (8, 8)),
    ("encoding", "gif"),
  ],
)
def test_faults_of_fake(field, value):
  config = images.default_config()
  config.name = "fake"
  config.fake[field] = value
  with pytest.raises(ValueError, match=f"fake.{field} is"):
    source.open_source(config, "train")


def test_evaluation_needs_no_training_split(config, tmp_path):
  run = run_config.get_config("tiny")
  run.data.update(
    data_dir=config.data_dir, train_split="elsewhere", eval_split="test[:7]"
  )
  info = experiment.create_evaluation(run).task.info
  assert (info.num_eval_examples, len(info.class_names)) == (7, 10)
  with pytest.raises(ValueError, match=r"'elsewhere' of 'digits' .*train \("):
    train.train_and_evaluate(run, str(tmp_path))


def _copy_of_digits(config, tmp_path):
  shutil.copytree(f"{config.data_dir}/digits", tmp_path / "digits")
  config.data_dir = str(tmp_path)
  (train_file,) = tmp_path.glob("digits/*/*train*")
  return train_file


def test_without_the_files_of_the_training_split(config, tmp_path):
  _copy_of_digits(config, tmp_path).unlink()
  assert images.dataset_info(config).num_eval_examples == 360
  assert len(next(iter(images.eval_batches(config, batch_size=4))))
  with pytest.raises(ValueError, match=r"lacks 1 of 1 files .*digits-train"):
    source.open_source(config, "train")


@pytest.mark.parametrize("size", [0, 1000, -1000])
def test_file_cut_short(config, tmp_path, size):
  train_file = _copy_of_digits(config, tmp_path)
  train_file.write_bytes(train_file.read_bytes()[:size])
  batches = images.train_iterator(config, seed=0, global_batch_size=4)
  with pytest.raises(source.DamagedFileError, match="cut short") as error:
    next(batches)
  assert str(train_file) in str(error.value)


def test_damaged_file(config, tmp_path):
  train_file = _copy_of_digits(config, tmp_path)
  data = bytearray(train_file.read_bytes())
  middle = len(data) // 2
  data[middle : middle + 100] = bytes(100)
  train_file.write_bytes(data)
  opened = source.open_source(config, "train")
  assert opened[0]["image"].startswith(b"\x89PNG")
  with pytest.raises(source.DamagedFileError, match="hash mismatch") as error:
    [opened[row] for row in range(len(opened))]
  assert str(train_file) in str(error.value)
  assert "(record " in str(error.value)
