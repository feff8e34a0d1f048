"""Digits that move: what a video shows, and what a room promises of it."""

import numpy as np
import pytest

from input_pipeline import digits, latents, visual
from input_pipeline.visual import moving_digits


@pytest.fixture
def config():
  config = visual.default_config()
  config.name = "moving_digits"
  config.image_size, config.channels = 16, 1
  config.num_threads = 0
  config.video.eval_examples = 7
  return config


def _where(frame, digit, room):
  """Places at which the frame has the digit; others may only be brighter."""
  return [
    (y, x)
    for y in range(room + 1)
    for x in range(room + 1)
    if (frame[y : y + 8, x : x + 8] == digit).all()
  ]


def test_one_digit_moves_on_a_line_and_bounces():
  source = moving_digits.MovingDigits("train", frames=12, side=13, count=1)
  pixels, labels = digits.load("train")
  speeds = set()
  for seed in range(20):
    made = source.example(np.random.default_rng(seed))
    video, room = made["image"][..., 0], 5
    assert video.shape == (12, 13, 13)
    assert made["label"].shape == ()
    # By search, which digit it is and where; all else is black.
    drawn = np.round(pixels * (255 / 16)).astype(np.uint8)
    same = np.flatnonzero(
      (drawn.reshape(len(drawn), -1).sum(1) == video[0].sum())
      & (labels == made["label"])
    )
    tracks = [[_where(frame, drawn[n], room) for frame in video] for n in same]
    (track,) = [track for track in tracks if all(track)][:1]
    places = np.array([found[0] for found in track])
    assert (video.sum((1, 2)) == video[0].sum()).all()
    moved = np.abs(np.diff(places, axis=0))
    # It may come back to where it was at a wall, but stands still nowhere.
    assert moved.max() <= 2
    assert moved.any(1).sum() > 6
    speeds |= set(map(tuple, moved))
    # The walker of the test turns round at walls, pixel by pixel.
    for axis in range(2):
      assert _walks(places[:, axis], room), places[:, axis]
  assert {(0, 1), (1, 2), (2, 2)} <= speeds


def _walks(places, room):
  """Whether some velocity gives the places."""
  for velocity in range(-2, 3):
    at, step, seen = int(places[0]), velocity, [int(places[0])]
    for _ in places[1:]:
      for _ in range(abs(step)):
        if not 0 <= at + np.sign(step) <= room:
          step = -step
        at += int(np.sign(step))
      seen.append(at)
    if seen == places.tolist():
      return True
  return False


def test_labels_are_those_of_the_digits_in_order(config):
  batch = next(visual.train_iterator(config, seed=0, global_batch_size=64))
  assert batch["image"].shape == (64, 8, 16, 16, 1)
  assert batch["image"].dtype == np.uint8
  assert batch["label"].shape == (64, 2)
  assert batch["label"].dtype == np.int32
  assert (batch["label"][:, 0] <= batch["label"][:, 1]).all()
  assert len(np.unique(batch["label"])) == 10
  assert (batch["mask"] == 1).all()
  assert not batch["damaged"].any()
  # What is lit is as much as two digits at most, and as one at least.
  pixels, labels = digits.load("train")
  ink = np.round(pixels * (255 / 16)).sum((1, 2))
  most = np.array([ink[labels == n].max() for n in range(10)])
  least = np.array([ink[labels == n].min() for n in range(10)])
  shown = batch["image"].sum((2, 3, 4))
  assert (shown <= most[batch["label"]].sum(1)[:, None]).all()
  assert (shown >= least[batch["label"]].max(1)[:, None]).all()


def test_the_splits_have_other_handwriting():
  train = moving_digits.MovingDigits("train", count=1, frames=1)
  other = moving_digits.MovingDigits("test", count=1, frames=1)
  one, two = (s.example(np.random.default_rng(1)) for s in (train, other))
  assert not np.array_equal(one["image"], two["image"])


def test_a_stream_goes_on_whatever_the_batches_are(config):
  whole = visual.train_iterator(config, seed=0, global_batch_size=4)
  rows = np.concatenate([next(whole)["image"] for _ in range(3)])
  assert len({row.tobytes() for row in rows}) == len(rows)
  first = visual.train_iterator(config, seed=0, global_batch_size=6, rows=[4])
  assert np.array_equal(next(first)["image"], rows[4:5])
  later = visual.train_iterator(config, seed=0, global_batch_size=2)
  later.set_state(first.get_state())
  assert np.array_equal(next(later)["image"], rows[6:8])
  other = visual.train_iterator(config, seed=1, global_batch_size=4)
  assert not np.array_equal(next(other)["image"], rows[:4])


def test_evaluation_is_the_same_each_time_and_pads(config):
  batches = visual.eval_batches(config, batch_size=4)
  one, two = ([*batches] for _ in range(2))
  index = np.concatenate([batch["index"] for batch in one])
  assert index.tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
  assert [batch["mask"].sum() for batch in one] == [4, 3]
  for a, b in zip(one, two, strict=True):
    assert np.array_equal(a["image"], b["image"])
  wide = next(iter(visual.eval_batches(config, batch_size=8)))
  assert np.array_equal(wide["image"][4:7], one[1]["image"][:3])


def test_what_is_known_of_the_videos(config):
  config.video.digits = 3
  info = visual.dataset_info(config)
  assert info.image_shape == (8, 16, 16, 1)
  assert info.labels == 3
  assert info.num_eval_examples == 7
  assert info.num_train_examples == visual.num_train_examples(config) == 20_000


def test_images_are_those_of_the_room_of_latents(tmp_path):
  config = visual.default_config()
  config.name, config.image_size, config.channels = "digits", 8, 1
  config.train_transform = "resize(method=bilinear)"
  config.data_dir, config.num_threads = str(tmp_path), 0
  assert visual.dataset_info(config).labels == 1
  assert visual.num_train_examples(config) == 1437
  one, two = (
    next(room.train_iterator(config, seed=3, global_batch_size=4))
    for room in (visual, latents)
  )
  assert np.array_equal(one["image"], two["image"])


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("video.frames", 0, "video.frames is 0"),
    ("video.speed", 0, "video.speed is 0"),
    ("image_size", 8, "image_size is 8, but .* at least 9"),
    ("channels", 3, "channels is 3"),
    ("text", "x.npz", "text is 'x.npz'"),
    ("num_threads", -1, "num_threads is -1"),
  ],
)
def test_what_does_not_fit(config, field, value, message):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    visual.dataset_info(config)
