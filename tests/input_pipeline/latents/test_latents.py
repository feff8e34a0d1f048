import itertools

import numpy as np
import pytest

from input_pipeline import images, latents
from input_pipeline.latents import dataset
from tests.input_pipeline.latents import conftest

BATCH = 4


def stack(batches):
  """All rows of batches, by name."""
  batches = list(batches)
  return {n: np.concatenate([b[n] for b in batches]) for n in batches[0]}


def train(config, *, count=8, rows=None, seed=3, batch=BATCH):
  iterator = latents.train_iterator(
    config, seed=seed, global_batch_size=batch, rows=rows
  )
  return list(itertools.islice(iterator, count))


def assert_equal(have, want):
  assert have.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(have[name], want[name])
    assert have[name].dtype == want[name].dtype


@pytest.mark.parametrize("split", ["train", "test", "train[3:9]"])
def test_evaluation_has_each_record_once(config, split):
  config.eval_split = split
  found = stack(latents.eval_batches(config, batch_size=BATCH))
  records = conftest.make_records(split.partition("[")[0])
  records = records[3:9] if "[" in split else records
  real = found["index"] >= 0
  count = len(records)
  assert len(real) == -(-count // BATCH) * BATCH
  np.testing.assert_array_equal(found["mask"], real)
  np.testing.assert_array_equal(found["index"][real], np.arange(count))
  for name in ("moments", "label", "example"):
    want = np.stack([record[name] for record in records])
    np.testing.assert_array_equal(found[name][real], want)
  assert found["moments"].dtype == np.float32


def test_info(config):
  assert latents.dataset_info(config) == latents.DatasetInfo(
    num_eval_examples=7,
    class_names=conftest.CLASS_NAMES,
    image_shape=(32, 48, 3),
    latent_shape=(2, 3, 5),
    scale=0.25,
    autoencoder="/nowhere/autoencoder",
    fingerprint="0123456789abcdef",
  )
  assert latents.num_train_examples(config) == 13
  config.train_split = "train[:5]"
  assert latents.num_train_examples(config) == 5


def test_order_is_that_of_images(config):
  """Of as many images, example n of the stream is the same one."""
  pixels = latents.default_config()
  pixels.name, pixels.train_transform = "fake", "resize"
  pixels.fake.train_examples, pixels.fake.num_classes = 13, 13
  ours = stack(train(config))["example"]
  theirs = stack(train(pixels))["label"]
  np.testing.assert_array_equal(ours, theirs)
  assert set(ours[:13]) == set(range(13))


def test_processes_and_a_restart_see_the_same_stream(config):
  config.num_workers = 0
  whole = stack(train(config))
  parts = [stack(train(config, rows=rows)) for rows in ([0, 1], [2, 3])]
  for name, value in whole.items():
    by_batch = value.reshape(-1, BATCH, *value.shape[1:])
    joined = [p[name].reshape(-1, 2, *value.shape[1:]) for p in parts]
    np.testing.assert_array_equal(np.concatenate(joined, 1), by_batch)
  iterator = latents.train_iterator(config, seed=3, global_batch_size=2)
  iterator.set_state({"next_example": 3 * BATCH})
  np.testing.assert_array_equal(
    next(iterator)["moments"], whole["moments"][3 * BATCH :][:2]
  )


def test_mirrored_moments_are_half_of_training_only(tmp_path, config):
  config.latents = str(tmp_path)
  for split in conftest.NUM_EXAMPLES:
    records = conftest.make_records(split, flipped=True)
    conftest.write(tmp_path, split, records, flipped=True)
  found = stack(train(config, count=100))
  plain = np.stack([r["moments"] for r in conftest.make_records("train")])
  rows = plain[found["example"]].astype(np.float32)
  mirrored = (found["moments"] == rows[:, :, ::-1]).all((1, 2, 3))
  straight = (found["moments"] == rows).all((1, 2, 3))
  assert (mirrored ^ straight).all()
  # Of 400 draws; five deviations.
  assert abs(mirrored.mean() - 0.5) < 0.125
  found = stack(latents.eval_batches(config, batch_size=7))
  plain = np.stack([r["moments"] for r in conftest.make_records("test")])
  np.testing.assert_array_equal(found["moments"], plain)


def test_classes_are_relabelled(config):
  config.classes = (2, 0)
  found = stack(latents.eval_batches(config, batch_size=2))
  real = found["mask"] > 0
  np.testing.assert_array_equal(found["example"][real], [0, 2, 3, 5, 6])
  np.testing.assert_array_equal(found["label"][real], [1, 0, 1, 0, 1])
  assert latents.dataset_info(config).class_names == ("two", "zero")


def test_pixels_are_those_of_the_image_room():
  config = latents.default_config()
  config.name, config.image_size = "fake", 16
  config.fake.test_examples = 6
  info = latents.dataset_info(config)
  assert info == latents.DatasetInfo(
    num_eval_examples=6,
    class_names=tuple(f"class {i}" for i in range(10)),
    image_shape=(16, 16, 3),
  )
  assert latents.num_train_examples(config) == 1024
  options = {"seed": 5, "global_batch_size": 3, "rows": [1, 2]}
  assert_equal(
    next(latents.train_iterator(config, **options)),
    next(images.train_iterator(config, **options)),
  )
  assert_equal(
    stack(latents.eval_batches(config, batch_size=4)),
    stack(images.eval_batches(config, batch_size=4)),
  )


def test_a_killed_writer_leaves_no_split(tmp_path):
  def records():
    yield from conftest.make_records("train")[:5]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    conftest.write(tmp_path, "train", records())
  assert dataset.find_splits(tmp_path) == {}
  conftest.write(tmp_path, "train", conftest.make_records("train"))
  assert list(dataset.find_splits(tmp_path)) == ["train"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"latents": "/nowhere"}, "'/nowhere' is no folder of latents"),
    ({"eval_split": "validation"}, "validation.*train.*test"),
    ({"eval_split": "train+test"}, "must not be a sum"),
    ({"image_size": 64}, "image_size is 64.*made with 48"),
    ({"eval_transform": "flip|resize"}, "eval_transform is 'flip|resize'"),
    ({"name": "fake"}, "name is 'fake'.*'digits'"),
    ({"num_threads": -1}, "num_threads is -1"),
    ({"classes": (0, 3)}, "different labels.*0 to 2"),
  ],
)
def test_what_does_not_fit(config, changes, message):
  config.update(changes)
  with pytest.raises(ValueError, match=message):
    latents.eval_batches(config, batch_size=2)


@pytest.mark.parametrize(
  ("field", "value"),
  [("image_size", 32), ("image_size", 48), ("train_transform", "resize")],
)
def test_image_fields_of_the_encoding_may_stay(config, field, value):
  config[field] = value
  latents.dataset_info(config)


def test_splits_of_two_autoencoders(tmp_path, config):
  conftest.write(tmp_path, "train", conftest.make_records("train"))
  other = conftest.make_encoding(fingerprint="f" * 16)
  records = conftest.make_records("test")
  conftest.write(tmp_path, "test", records, encoding=other)
  config.latents = str(tmp_path)
  with pytest.raises(ValueError, match=r"'test' and 'train'.*fingerprint is"):
    latents.dataset_info(config)


def test_another_autoencoder_than_asked(tmp_path, config):
  weights = tmp_path / "one"
  weights.mkdir()
  encoding = conftest.make_encoding(autoencoder=str(weights))
  records = conftest.make_records("test")
  conftest.write(tmp_path, "test", records, encoding=encoding)
  config.latents = str(tmp_path)
  config.autoencoder = str(weights)
  assert latents.dataset_info(config).autoencoder == str(weights)
  config.autoencoder = str(tmp_path / "other")
  with pytest.raises(ValueError, match=r"other'.*were made by .*one'"):
    latents.dataset_info(config)
  # What was moved is judged by its weights.
  weights.rmdir()
  assert latents.dataset_info(config).autoencoder == str(tmp_path / "other")


def test_pixels_have_no_autoencoder():
  config = latents.default_config()
  config.autoencoder = "runs/autoencoder"
  with pytest.raises(ValueError, match="without latents it has nothing"):
    latents.dataset_info(config)
