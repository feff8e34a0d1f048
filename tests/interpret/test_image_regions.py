"""Regions of scores: the sheet's golden grid, a flood fill, and pictures."""

import colorsys

import numpy as np
import pytest

from interpret import image_regions
from tests.interpret.test_contrast_crop import GENERAL, QUESTION, SEMANTIC


@pytest.mark.parametrize(
  ("offset", "expected"), [(0.05, 4.571429), (0.0, 16.0)]
)
def test_the_golden_grid(offset, expected):
  scores = QUESTION / (GENERAL + offset)
  regions = image_regions.select(scores, 0.25, 2)
  assert regions.found == 1
  assert regions.scores == pytest.approx([expected], abs=1e-6)
  assert regions.box == (1, 2, 3, 4)
  np.testing.assert_array_equal(regions.mask, SEMANTIC == 4.0)


def flood(mask):
  """Regions as sets of places, by walking from each place to its neighbours."""
  left, regions = set(zip(*np.nonzero(mask), strict=True)), []
  while left:
    walk, region = [left.pop()], set()
    while walk:
      row, column = walk.pop()
      region.add((row, column))
      for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        place = (row + step[0], column + step[1])
        if place in left:
          left.remove(place)
          walk.append(place)
    regions.append(region)
  return regions


@pytest.mark.parametrize("seed", range(5))
def test_regions_are_those_of_a_flood_fill(seed):
  rng = np.random.default_rng(seed)
  scores = rng.random((9, 7))
  share, count = 0.4, 3
  # The quantile by hand, between the two values around its place.
  ordered = np.sort(scores.ravel())
  place = (1 - share) * (len(ordered) - 1)
  low = int(place)
  bound = ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
  found = flood(scores >= bound)
  assert len(found) > count
  ranked = sorted(found, key=lambda r: -sum(scores[p] for p in r))[:count]
  regions = image_regions.select(scores, share, count)
  assert regions.found == len(found)
  kept = set().union(*ranked)
  assert set(zip(*np.nonzero(regions.mask), strict=True)) == kept
  rows, columns = zip(*kept, strict=True)
  assert regions.box == (
    min(rows),
    min(columns),
    max(rows) + 1,
    max(columns) + 1,
  )
  sums = [sum(scores[p] for p in region) for region in ranked]
  np.testing.assert_allclose(regions.scores, sums, rtol=1e-9)


def test_two_regions_far_apart_have_a_box_of_nearly_everything():
  scores = np.zeros((8, 8))
  scores[0, 0] = scores[7, 7] = 1.0
  share = 2 / 64
  assert image_regions.select(scores, share, 1).box == (0, 0, 1, 1)
  assert image_regions.select(scores, share, 2).box == (0, 0, 8, 8)


def test_the_released_count_is_the_least():
  assert [image_regions.released_count(n) for n in (1, 14, 20, 31)] == [
    3,
    3,
    4,
    6,
  ]
  scores = np.zeros((8, 8))
  scores[::2, ::2] = np.arange(1, 17).reshape(4, 4)
  regions = image_regions.select(scores, 0.25, image_regions.released_count)
  assert (regions.found, regions.scores) == (16, (16.0, 15.0, 14.0))


def test_masking_cropping_and_magnifying():
  image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) + 1
  regions = image_regions.select(QUESTION / GENERAL, 0.25, 2)
  large = image_regions.refine(image, regions)
  assert large.shape == (4, 4, 3)
  assert large.dtype == np.uint8
  corners = large[[0, 0, -1, -1], [0, -1, 0, -1]]
  np.testing.assert_array_equal(corners, image[[1, 1, 2, 2], [2, 3, 2, 3]])
  kept = image_regions.refine(image, regions, crop=False, fill=9)
  np.testing.assert_array_equal(kept[1:3, 2:], image[1:3, 2:])
  assert (kept[regions.mask == 0] == 9).all()
  grey = image_regions.refine(
    image[..., :1].astype(np.float32), regions, (6, 5)
  )
  assert grey.shape == (6, 5, 1)
  np.testing.assert_array_equal(image, np.arange(1, 49).reshape(4, 4, 3))


def test_upsampling_keeps_the_mean_and_is_linear():
  rng = np.random.default_rng(0)
  one, two = rng.random((2, 4, 6))
  large = image_regions.upsample(one, (16, 24))
  assert large.shape == (16, 24)
  assert large.mean() == pytest.approx(one.mean(), rel=1e-5)
  both = image_regions.upsample(one + 2 * two, (16, 24))
  apart = large + 2 * image_regions.upsample(two, (16, 24))
  np.testing.assert_allclose(both, apart, rtol=1e-4)
  # Pixels of a patch are around its middle.
  assert large[:2, :2].max() == pytest.approx(one[0, 0], rel=1e-5)


def test_the_entropy_of_hues():
  for bins, expected in ((1, 0.0), (2, 0.133478), (12, 0.478515), (180, 1.0)):
    counts = np.repeat([5, 0], [bins, 180 - bins])
    found = image_regions.hue_entropy(counts)
    assert found == pytest.approx(expected, abs=1e-6)
  colours = [colorsys.hsv_to_rgb(i / 12, 1, 1) for i in range(12)]
  image = np.round(np.array(colours) * 255).astype(np.uint8)
  found = image_regions.hue_complexity(image.reshape(3, 4, 3))
  assert found == pytest.approx(0.478515, abs=1e-6)


def test_edges():
  image = np.zeros((20, 20), np.uint8)
  assert image_regions.edge_complexity(image) == 0.0
  image[5:15, 5:15] = 255
  # About the square's rim, of 4 x 10 pixels.
  share = image_regions.edge_complexity(image)
  assert share == pytest.approx(40 / 400, abs=0.02)
  coloured = np.repeat(image[..., None], 3, axis=-1)
  assert image_regions.edge_complexity(coloured) == share


def test_regions_of_tokens_are_those_of_their_pixels():
  regions = image_regions.select(QUESTION / GENERAL, 0.25, 2)
  large = image_regions.enlarge(regions, 3)
  assert large.box == (3, 6, 9, 12)
  np.testing.assert_array_equal(
    large.mask, np.kron(regions.mask, np.ones((3, 3)))
  )


def test_overlap():
  mask = np.array([1, 1, 0, 0], bool)
  assert image_regions.overlap(mask, np.array([0, 1, 1, 0], bool)) == 1 / 3
  assert image_regions.overlap(mask & False, mask & False) == 0.0


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: image_regions.select(np.ones(4), 0.5, 1),
      r"scores have shape \(4,\)",
    ),
    (
      lambda: image_regions.select(np.full((2, 2), np.nan), 0.5, 1),
      "finite numbers",
    ),
    (lambda: image_regions.select(np.ones((2, 2)), 0.0, 1), "share is 0.0"),
    (lambda: image_regions.select(np.ones((2, 2)), 0.5, 0), "regions is 0"),
    (
      lambda: image_regions.refine(
        np.ones((4, 4, 1)), image_regions.select(np.ones((2, 2)), 0.5, 1)
      ),
      r"image has shape \(4, 4, 1\)",
    ),
    (
      lambda: image_regions.edge_complexity(np.ones((4, 4))),
      "image is float64",
    ),
    (
      lambda: image_regions.hue_complexity(np.ones((4, 4), np.uint8)),
      "hues need 3 channels",
    ),
  ],
)
def test_what_does_not_fit_is_told(call, message):
  with pytest.raises(ValueError, match=message):
    call()
