import itertools
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from input_pipeline import images
from input_pipeline.images import decode, source


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def assert_equal(actual, expected):
  assert len(actual) == len(expected)
  for a, b in zip(actual, expected, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def train(config, batch_size=100, seed=0, rows=None):
  return images.train_iterator(
    config, seed=seed, global_batch_size=batch_size, rows=rows
  )


def shares(batch_size, process_count):
  """The rows of each process: one run of rows each."""
  return np.split(np.arange(batch_size), process_count)


def join(batches):
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def damage(encoded, index):
  """Cuts an image in two halves and keeps one."""
  encoded[index] = encoded[index][: len(encoded[index]) // 2]
  return encoded


@pytest.fixture
def damaged_config(config, write_tiny, encoded):
  """The sixth of ten images is damaged."""
  data_dir = write_tiny(damage(encoded, 5))
  config.update(name="tiny", data_dir=str(data_dir), eval_split="train")
  return config


def test_batch_of_digits(config):
  batch = next(train(config))
  assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
    "image": ("uint8", (100, 32, 32, 3)),
    "label": ("int32", (100,)),
    "mask": ("float32", (100,)),
    "damaged": ("bool", (100,)),
  }
  assert batch["mask"].all()
  config.channels = 1
  assert next(train(config))["image"].shape == (100, 32, 32, 1)


def test_info(config):
  assert images.dataset_info(config) == images.DatasetInfo(
    num_eval_examples=360,
    class_names=tuple("0123456789"),
  )
  assert images.num_train_examples(config) == 1437


def test_same_seed_gives_the_same_and_another_does_not(config):
  first = take(train(config, seed=3), 3)
  assert_equal(take(train(config, seed=3), 3), first)
  other = take(train(config, seed=4), 3)
  assert not np.array_equal(join(other)["label"], join(first)["label"])


def count_examples(config, batches):
  """How often each record of "fake" occurs, told by its bytes."""
  records = source.open_source(config, "train")
  keys = [decode.decode_image(r["image"]).tobytes() for r in iter_all(records)]
  assert len(set(keys)) == len(keys)
  number = {key: i for i, key in enumerate(keys)}
  found = [number[image.tobytes()] for image in join(batches)["image"]]
  return np.array(found)


def iter_all(records):
  return (records[i] for i in range(len(records)))


@pytest.fixture
def fake_config():
  """105 images, unchanged, so that each can be told from its pixels."""
  config = images.default_config()
  config.update(name="fake", train_transform="resize", image_size=8)
  config.fake.update(train_examples=105, image_shape=(8, 8, 3))
  return config


def test_each_epoch_has_each_example_once_in_its_own_order(fake_config):
  # Three epochs of 105 are 35 batches of 9; 105 is no multiple of 9.
  batches = take(train(fake_config, batch_size=9), 35)
  epochs = count_examples(fake_config, batches).reshape(3, 105)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(105))
  for a, b in itertools.combinations(epochs, 2):
    assert np.mean(a == b) < 0.1


def test_next_seed_does_not_start_with_the_second_epoch(fake_config):
  first = count_examples(fake_config, take(train(fake_config, 105), 2))
  second = count_examples(fake_config, take(train(fake_config, 105, seed=1), 1))
  assert np.mean(first[105:] == second) < 0.1


def test_augmentation_differs_between_epochs(config):
  config.train_split = "train[:1]"
  config.train_transform = "affine(rotate=10)"
  batch = next(train(config, batch_size=8))
  assert len({image.tobytes() for image in batch["image"]}) == 8


@pytest.mark.parametrize("process_count", [2, 4])
def test_global_batches_do_not_depend_on_the_process_count(
  config, process_count
):
  expected = take(train(config, batch_size=64), 25)
  processes = [
    train(config, batch_size=64, rows=rows)
    for rows in shares(64, process_count)
  ]
  assert_equal(
    [join(rows) for rows in itertools.islice(zip(*processes, strict=True), 25)],
    expected,
  )


def test_a_process_may_read_any_rows(config):
  whole = take(train(config, batch_size=12), 3)
  rows = [2, 3, 4, 9]
  mine = take(train(config, batch_size=12, rows=rows), 3)
  assert_equal(mine, [{k: v[rows] for k, v in b.items()} for b in whole])


@pytest.mark.parametrize(("before", "after"), [(6, 4), (4, 10), (1, 105)])
def test_another_batch_size_goes_on_with_the_next_example(
  fake_config, before, after
):
  # Two epochs of 105; the change is within the first.
  one_by_one = take(train(fake_config, batch_size=1), 210)
  seen = train(fake_config, batch_size=before)
  taken = 5 * before
  take(seen, 5)
  rest = (210 - taken) // after
  expected = join(one_by_one[taken : taken + rest * after])
  # Two processes go on where one was, and the other way round.
  for count in (1, 2) if after % 2 == 0 else (1,):
    processes = [
      train(fake_config, batch_size=after, rows=rows)
      for rows in shares(after, count)
    ]
    for process in processes:
      process.set_state(seen.get_state())
    batches = [take(process, rest) for process in processes]
    assert_equal(
      [join([join(rows) for rows in zip(*batches, strict=True)])], [expected]
    )
    assert processes[0].get_state() == {"next_example": taken + rest * after}


def test_a_position_counted_in_batches_is_refused(config):
  iterator = train(config)
  with pytest.raises(
    ValueError, match=r"'next_batch': 3.*must be next_example"
  ):
    iterator.set_state({"next_batch": 3})


# Starts workers.
@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_restored_state_goes_on_exactly(config, num_threads):
  config.num_threads = num_threads
  iterator = train(config)
  take(iterator, 17)
  # Through JSON, as in a checkpoint. 17 * 100 is within the second epoch.
  state = json.loads(json.dumps(iterator.get_state()))
  expected = take(iterator, 5)
  # Into a fresh iterator, one that is elsewhere, and the same one.
  elsewhere = train(config)
  take(elsewhere, 3)
  for other in (train(config), elsewhere, iterator):
    other.set_state(state)
    assert other.get_state() == state
    assert_equal(take(other, 5), expected)
    assert other.get_state() == {"next_example": 2200}


def test_state_far_away_is_as_quick(config):
  iterator = train(config)
  iterator.set_state({"next_example": 10**11})
  assert next(iterator)["mask"].all()
  assert iterator.get_state() == {"next_example": 10**11 + 100}


def test_workers_give_the_same_batches_and_state(config):
  expected = take(train(config), 6)
  config.num_workers = 1
  iterator = train(config)
  try:
    assert_equal(take(iterator, 2), expected[:2])
    assert iterator.get_state() == {"next_example": 200}
  finally:
    iterator.close()


@pytest.mark.kill
def test_a_worker_that_is_killed_is_an_error(fake_config):
  fake_config.num_workers = 2
  iterator = train(fake_config, batch_size=8)
  try:
    take(iterator, 3)
    # As the kernel does when memory runs out.
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"terminated unexpectedly.* -9"):
      # Some batches may be ready.
      take(iterator, 1000)
  finally:
    iterator.close()


@pytest.mark.parametrize("process_count", [1, 2, 3])
@pytest.mark.parametrize("local_batch", [1, 7, 40, 500])
def test_evaluation_has_each_example_once(
  fake_config, process_count, local_batch
):
  config = fake_config
  config.eval_split = "train"
  config.eval_transform = "resize"
  batch_size = local_batch * process_count
  processes = [
    list(
      images.eval_batches(
        config,
        batch_size=batch_size,
        rows=rows,
      )
    )
    for rows in shares(batch_size, process_count)
  ]
  counts = {len(batches) for batches in processes}
  assert counts == {-(-105 // batch_size)}
  rows = [join(batches) for batches in zip(*processes, strict=True)]
  assert all(len(b["mask"]) == batch_size for b in rows)
  joined = join(rows)
  padding = batch_size * len(rows) - 105
  expected = [*range(105)] + [-1] * padding
  np.testing.assert_array_equal(joined["index"], expected)
  np.testing.assert_array_equal(joined["mask"], joined["index"] >= 0)
  assert not joined["image"][105:].any()
  assert not joined["label"][105:].any()
  records = iter_all(source.open_source(config, "train"))
  for row, record in enumerate(records):
    pixels = decode.decode_image(record["image"])
    np.testing.assert_array_equal(joined["image"][row], pixels)
    assert joined["label"][row] == record["label"]


def test_evaluation_can_be_repeated(config):
  config.eval_transform = config.train_transform
  batches = images.eval_batches(config, batch_size=100)
  assert_equal(list(batches), list(batches))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_image_stops_and_says_which(damaged_config, num_workers):
  damaged_config.num_workers = num_workers
  batches = images.eval_batches(damaged_config, batch_size=4)
  iterator = iter(batches)
  next(iterator)
  with pytest.raises(
    images.DamagedImageError,
    match=r"record 5 of 'tiny', split 'train' \(record 5 in .*tiny-train",
  ):
    next(iterator)
  iterator.close()


def test_damaged_image_can_be_skipped(damaged_config, caplog):
  damaged_config.skip_damaged = True
  evaluation = list(images.eval_batches(damaged_config, batch_size=4))
  np.testing.assert_array_equal(
    join(evaluation)["mask"], [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0]
  )
  assert not evaluation[1]["image"][1].any()
  assert [b["damaged"].sum() for b in evaluation] == [0, 1, 0]
  assert "record 5 of 'tiny'" in caplog.text
  batch = next(train(damaged_config, batch_size=20))
  assert batch["mask"].sum() == 18
  assert batch["damaged"].sum() == 2


@pytest.mark.parametrize(
  ("fields", "options", "message"),
  [
    ({}, dict(rows=range(6, 13)), r"rows are range\(6, 13\).* from 0 to 11"),
    ({}, dict(global_batch_size=0), "batch size 0"),
    ({}, dict(rows=()), "reads at least one"),
    ({}, dict(seed=-1), "seed is -1"),
    (dict(num_workers=-1), {}, "num_workers is -1"),
    (dict(num_threads=-1), {}, "num_threads is -1"),
    (dict(channels=4), {}, "channels is 4"),
    (dict(image_size=0), {}, "image_size is 0, but it must be an int"),
    # Before all records are read for their labels.
    (dict(num_threads=-1, classes=(77,)), {}, "num_threads is -1"),
    (
      {"name": "fake", "fake.num_classes": 0},
      {},
      "fake.num_classes is 0, but it must be an int of at least 1",
    ),
    ({"name": "fake", "fake.image_shape": (8, 0, 3)}, {}, "fake.image_shape"),
    (dict(train_split="train[:0]"), {}, "no examples"),
    (dict(train_transform="resize(16)"), {}, r"end it with resize\(\)"),
    (dict(train_transform="rezise"), {}, "train_transform: 'rezise' is no"),
    (dict(name="digit"), {}, "Did you mean digits"),
  ],
)
def test_faults(config, fields, options, message):
  config.update_from_flattened_dict(fields)
  options = dict(seed=0, global_batch_size=12) | options
  with pytest.raises(ValueError, match=message):
    images.train_iterator(config, **options)
