"""Images with more and less clutter, for the study of CARVE by clutter."""

import numpy as np
import pytest

from input_pipeline.sequences import digits_grid
from tools import grid_questions
from tools.interpret_studies import carve, carve_clutter

SOURCE = digits_grid.DigitsGrid(terse=True)


@pytest.mark.parametrize("kind", carve.KINDS)
@pytest.mark.parametrize("others", [0, 5, 15])
def test_fewer_digits_keep_the_one_that_is_asked_for(kind, others):
  asked = grid_questions.ask(SOURCE, kind, 40)
  targets = carve.targets_of(SOURCE.words, asked, kind)
  rng = np.random.default_rng(0)
  fewer = carve_clutter.fewer(asked, targets, others, rng)
  kept = fewer.grids >= 0
  assert (kept.sum((1, 2)) == others + 1).all()
  np.testing.assert_array_equal(fewer.grids[kept], asked.grids[kept])
  for old, new, grid in zip(
    asked.images, fewer.images, fewer.grids, strict=True
  ):
    for (row, column), digit in np.ndenumerate(grid):
      tile = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
      assert (new[tile] == (old[tile] if digit >= 0 else -1)).all()
  left = carve.targets_of(SOURCE.words, fewer, kind) & kept.reshape(40, -1)
  np.testing.assert_array_equal(left.any(1), targets.any(1))
  assert (left <= targets).all()
  if kind == "is_there":
    assert 0 < targets.any(1).sum() < 40
  if others == 0 and kind == "is_there":
    # Which of several is kept, is drawn.
    several = targets.sum(1) > 1
    first = targets.argmax(1) == kept.reshape(40, -1).argmax(1)
    assert not first[several].all()


def test_strokes_are_drawn_over_digits():
  asked = grid_questions.ask(SOURCE, "which", 30)
  seen = [
    carve_clutter.stroked(asked, count, np.random.default_rng(0)).images
    for count in (0, 6, 24)
  ]
  np.testing.assert_array_equal(seen[0], asked.images)
  assert seen[0].dtype == seen[2].dtype == np.float32
  assert (seen[1] >= asked.images).all()
  assert seen[2].min() == -1
  assert seen[2].max() <= 1
  shares = [carve_clutter.edges(images).mean() for images in seen]
  added = [(images > asked.images).mean() for images in seen]
  assert added[0] == 0 < added[1] < added[2]
  assert shares[0] < shares[1] < shares[2]


def test_thirds_are_ordered_and_are_all():
  values = np.random.default_rng(0).permutation(11)
  parts = [carve_clutter.third(values, place) for place in range(3)]
  assert [len(part) for part in parts] == [4, 4, 3]
  found = [values[part].tolist() for part in parts]
  assert [i for part in found for i in sorted(part)] == list(range(11))
