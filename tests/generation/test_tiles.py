"""Tiles cover the canvas, and merge to means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generation.tiles import Tiles

CASES = [
  ((32, 32), (16, 16), (8, 8)),
  ((11, 17), (4, 6), (1, 5)),
  ((3, 9, 10), (3, 4, 5), (0, 2, 2)),
  ((8, 8), (8, 8), (4, 4)),
  ((7, 9), (7, 2), (0, 0)),
]


def reference(x, tiles, plan):
  """The sum of what covers each place over how many do, in loops."""
  total, counts = np.zeros(x.shape), np.zeros(x.shape)
  for start, tile in zip(plan.starts, tiles, strict=True):
    for place in np.ndindex(*plan.window):
      where = (slice(None), *(s + p for s, p in zip(start, place, strict=True)))
      total[where] += tile[(slice(None), *place)]
      counts[where] += 1
  assert counts.min() > 0
  return total / counts


@pytest.mark.parametrize(("shape", "window", "overlap"), CASES)
def test_merge_is_the_mean(shape, window, overlap):
  plan = Tiles(shape, window, overlap)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *shape, 3)).astype(np.float32)
  cut = plan.cut(jnp.asarray(x))
  assert cut.shape == (len(plan.starts), 2, *window, 3)
  for start, tile in zip(plan.starts, cut, strict=True):
    here = tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
    np.testing.assert_array_equal(tile, x[(slice(None), *here)])
  tiles = rng.normal(size=cut.shape).astype(np.float32)
  np.testing.assert_allclose(
    plan.merge(jnp.asarray(tiles)), reference(x, tiles, plan), atol=1e-6
  )


@pytest.mark.parametrize(("shape", "window", "overlap"), CASES)
def test_pointwise_functions_pass_exactly(shape, window, overlap):
  """Also where three tiles overlap, whose sum over three would round."""
  plan = Tiles(shape, window, overlap)
  x = jax.random.normal(jax.random.key(0), (1, *shape, 1))
  y = np.asarray(x) ** 3 - np.asarray(x)
  made = plan.merge(plan.cut(jnp.asarray(y)))
  np.testing.assert_array_equal(made, y)


def test_starts():
  """The last tile is moved back; overlaps are at least what was asked for."""
  plan = Tiles((11, 17), (4, 6), (1, 5))
  assert sorted({row for row, _ in plan.starts}) == [0, 3, 6, 7]
  assert sorted({column for _, column in plan.starts}) == list(range(12))
  assert plan.counts.max() == 2 * 6
  # SDXL's canvas of 4096 x 4096 pixels, in latents.
  assert len(Tiles((512, 512), (128, 128), (64, 64)).starts) == 49


def test_in_patches():
  plan = Tiles((3, 8, 12), (3, 4, 4), (0, 2, 2))
  small = plan.in_patches((1, 2, 2))
  assert small == Tiles((3, 4, 6), (3, 2, 2), (0, 1, 1))
  assert small.starts == tuple((f, r // 2, c // 2) for f, r, c in plan.starts)
  with pytest.raises(
    ValueError, match=r"overlap=\(0, 2, 2\) must be multiples"
  ):
    plan.in_patches((1, 4, 4))


@pytest.mark.parametrize(
  ("window", "overlap", "message"),
  [
    ((9, 4), (0, 0), r"window=\(9, 4\) must be from 1 to the sides \(8, 8\)"),
    ((0, 4), (0, 0), r"window=\(0, 4\) must be from 1"),
    ((4, 4), (4, 0), r"overlap=\(4, 0\) must be from 0 to less than \(4, 4\)"),
    ((4,), (0, 0), r"need a number for each side of \(8, 8\)"),
  ],
)
def test_refuses(window, overlap, message):
  with pytest.raises(ValueError, match=message):
    Tiles((8, 8), window, overlap)
