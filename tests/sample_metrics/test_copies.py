"""Samples that are copies are found out."""

import numpy as np
import pytest

from sample_metrics import nearness


def _images(rng, count):
  return rng.integers(0, 256, (count, 5, 3, 2), np.uint8)


def test_nearness_by_loops():
  rng = np.random.default_rng(0)
  samples, training, held_out = (_images(rng, n) for n in (7, 11, 9))

  def nearest(images):
    return [
      min(
        np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2))
        for b in training
      )
      for a in images
    ]

  made = nearness(samples, training, held_out)
  np.testing.assert_allclose(
    [made["nearest_median"], made["held_out_nearest_median"]],
    [np.median(nearest(samples)), np.median(nearest(held_out))],
    rtol=1e-12,
  )
  limit = np.quantile(nearest(held_out), 0.01)
  share = np.mean(np.array(nearest(samples)) < limit)
  assert made["nearer_than_held_out"] == share


def test_copies_are_nearer():
  rng = np.random.default_rng(1)
  training, held_out = _images(rng, 50), _images(rng, 40)
  noise = rng.integers(0, 2, (20, 5, 3, 2), np.uint8)
  copies = np.concatenate([training[:20] ^ noise, _images(rng, 60)])
  made = nearness(copies, training, held_out)
  assert 0.25 <= made["nearer_than_held_out"] <= 0.35
  assert nearness(copies[:20], training, held_out)["nearest_median"] < 1


def test_images_of_another_shape():
  rng = np.random.default_rng(2)
  images = _images(rng, 4)
  with pytest.raises(ValueError, match=r"samples are \[4, 5, 3, 1\]"):
    nearness(images[..., :1], images, images)
