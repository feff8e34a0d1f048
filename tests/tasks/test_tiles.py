"""Tiles: every pixel once, far from the edges of its tile."""

import numpy as np
import pytest

from tasks import tiles


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("overlap", [0, 5, 11])
def test_every_pixel_is_kept_once_with_its_surroundings(overlap, multiple):
  tile = 16
  # All remainders, also those thinner than the overlap, and sides below a tile.
  for side in range(multiple, 80, multiple):
    found = tiles.spans(side, tile, overlap, multiple)
    owners = np.zeros(side, int)
    for span in found:
      owners[span.keep_start : span.keep_stop] += 1
      assert span.stop - span.start == min(tile, side)
      assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop
      assert span.start % multiple == 0
      assert span.stop <= side
      before, after = span.keep_start - span.start, span.stop - span.keep_stop
      assert before >= overlap // 2 or span.start == span.keep_start == 0
      assert after >= overlap // 2 or span.stop == span.keep_stop == side
    assert (owners == 1).all()


def test_no_more_tiles_than_the_image_needs():
  assert len(tiles.spans(64, 16, 0)) == 4
  assert len(tiles.spans(65, 16, 0)) == 5
  # Each but the last goes on by 12: 0, 12, 24, 36, and 48 at the end.
  assert [s.start for s in tiles.spans(64, 16, 4)] == [0, 12, 24, 36, 48]


def test_tiles_put_together_are_the_image():
  image = np.random.default_rng(0).random((37, 23, 3))
  whole = np.full((74, 46, 3), np.nan)
  places = tiles.grid(image.shape, 8, 3)
  for place, tile in zip(places, tiles.cut(image, places), strict=True):
    assert tile.shape == (8, 8, 3)
    tiles.put(whole, tile.repeat(2, 0).repeat(2, 1), place, scale=2)
  np.testing.assert_array_equal(whole, image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
  ("tile", "overlap", "message"),
  [
    (12, 0, "tile=12 must be a multiple of 8 pixels"),
    (-8, 0, "tile=-8 must be a multiple of 8 pixels"),
    (16, 9, "overlap=9 must be from 0 to 8"),
    (16, -1, "overlap=-1 must be from 0 to 8"),
  ],
)
def test_tiles_that_do_not_go_on(tile, overlap, message):
  with pytest.raises(ValueError, match=message):
    tiles.spans(64, tile, overlap, 8)
