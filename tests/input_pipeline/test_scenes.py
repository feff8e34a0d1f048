"""Scenes of shapes: what is drawn, its boxes, and streams of it."""

import numpy as np
import pytest

from input_pipeline import scenes
from input_pipeline.scenes import shapes


def drawn(domain, number, size=64):
  return shapes.scene(np.random.default_rng(number), domain, size, 3)


def test_boxes_are_the_extent_of_shapes():
  """Bright shapes stand out of the source's dark background."""
  seen = set()
  for number in range(40):
    example = drawn("source", number)
    bright = example["image"].max(-1) > 100
    for box, label in zip(example["boxes"], example["labels"], strict=True):
      if label < 0:
        np.testing.assert_array_equal(box, 0)
        continue
      seen.add(label)
      top, left, bottom, right = box.astype(int)
      own = np.zeros_like(bright)
      own[top:bottom, left:right] = True
      rows, columns = (
        np.flatnonzero((bright & own).any(axis)) for axis in (1, 0)
      )
      extent = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
      np.testing.assert_array_equal(box, extent)
      share = bright[top:bottom, left:right].mean()
      expected = {"disc": 0.785, "square": 1.0, "triangle": 0.5, "ring": 0.55}
      assert share == pytest.approx(expected[shapes.CLASSES[label]], abs=0.09)
      bright &= ~own
    assert not bright.any()
    assert (example["labels"] >= 0).any()
  assert seen == {0, 1, 2, 3}


def test_domains_differ_in_colour_alone():
  for number in range(5):
    source, target = (drawn(domain, number) for domain in shapes.DOMAINS)
    assert source["image"].shape == target["image"].shape == (64, 64, 3)
    assert source["image"].mean() < target["image"].mean()
    again = drawn("target", number)
    for name, x in target.items():
      np.testing.assert_array_equal(again[name], x)


def config_of(**fields):
  config = scenes.default_config()
  config.update(dict(train_examples=6, eval_examples=5, **fields))
  return config


def test_a_scene_is_a_function_of_its_number():
  config = config_of()
  whole = scenes.train_iterator(config, seed=3, global_batch_size=4)
  part = scenes.train_iterator(config, seed=3, global_batch_size=4, rows=[1, 3])
  for _ in range(3):
    rows, own = next(whole), next(part)
    for name, x in rows.items():
      np.testing.assert_array_equal(own[name], x[[1, 3]])
  other = next(scenes.train_iterator(config, seed=4, global_batch_size=4))
  assert (other["image"] != rows["image"]).any()
  evaluated = list(scenes.eval_batches(config, batch_size=4))
  index = np.concatenate([batch["index"] for batch in evaluated])
  np.testing.assert_array_equal(index, [0, 1, 2, 3, 4, -1, -1, -1])
  # Few shots are the same in each epoch.
  shots = scenes.train_iterator(config, seed=3, global_batch_size=6)
  first, second = (np.sort(next(shots)["image"].sum((1, 2, 3))) for _ in "ab")
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"domain": "sea"}, "domain is 'sea'; it must be one of source, target"),
    ({"image_size": 16}, "image_size"),
    ({"most_objects": 0}, "most_objects"),
  ],
)
def test_errors(fields, message):
  with pytest.raises(ValueError, match=message):
    scenes.dataset_info(config_of(**fields))
