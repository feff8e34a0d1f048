"""Motion between frames: what only moves is consistent, and what is made up."""

import itertools

import numpy as np
import pytest

from input_pipeline.visual import moving_digits
from sample_metrics import motion


def _videos(count, number, seed=0, **fields):
  source = moving_digits.MovingDigits("train", count=number, **fields)
  rng = np.random.default_rng(seed)
  return np.stack([source.example(rng)["image"] for _ in range(count)])


def _slow(videos, reach):
  """The definition, block by block and shift by shift."""
  missed = energy = changed = 0.0
  for video in videos.astype(float):
    for before, later in itertools.pairwise(video):
      energy += (later**2).sum()
      changed += ((later - before) ** 2).sum()
      height, width = later.shape[:2]
      for y in range(0, height, 4):
        for x in range(0, width, 4):
          errors = []
          for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
              other = np.zeros((4, 4, later.shape[2]))
              for i in range(4):
                for j in range(4):
                  u, v = y + i + dy, x + j + dx
                  if 0 <= u < height and 0 <= v < width:
                    other[i, j] = before[u, v]
              block = later[y : y + 4, x : x + 4]
              errors.append(((block - other) ** 2).sum())
          missed += min(errors)
  return 1 - missed / energy, changed / energy


@pytest.mark.parametrize("reach", [0, 1])
def test_the_definition(reach):
  rng = np.random.default_rng(1)
  videos = rng.integers(0, 256, (2, 3, 8, 12, 2)).astype(np.uint8)
  np.testing.assert_allclose(
    motion.motion(videos, reach=reach), _slow(videos, reach), rtol=1e-12
  )


def test_what_only_moves_is_found_again():
  # Of one digit only what turns round at an edge is not.
  one = motion.motion(_videos(20, 1))
  two = motion.motion(_videos(20, 2))
  assert one.consistency == pytest.approx(1)
  assert 0.85 < two.consistency < 0.95
  assert one.amount > 0.5
  far = motion.motion(_videos(20, 1, speed=5))
  assert far.consistency < 0.9


def test_what_does_not_hang_together_is_not_found():
  videos = _videos(20, 2)
  rng = np.random.default_rng(0)
  shuffled = rng.permuted(videos, axis=0)
  noise = rng.integers(0, 256, videos.shape).astype(np.uint8)
  still = videos[:, :1].repeat(8, axis=1)
  of_still = motion.motion(still)
  assert of_still == (1, 0)
  whole = motion.motion(videos).consistency
  assert motion.motion(shuffled).consistency < whole - 0.3
  assert motion.motion(noise).consistency < whole - 0.15


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((2, 8, 8, 1), "must be .batch, frames"),
    ((2, 1, 8, 8, 1), "two frames"),
    ((2, 3, 8, 6, 1), "8 x 6 pixels.*multiples of 4"),
    ((2, 3, 8, 8, 1), "black"),
  ],
)
def test_what_does_not_fit(shape, message):
  with pytest.raises(ValueError, match=message):
    motion.motion(np.zeros(shape))
