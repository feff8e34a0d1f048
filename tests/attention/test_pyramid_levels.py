"""Importance and levels of the pyramid against the fact sheet's loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import pyramid, pyramid_importance, pyramid_levels

POOLS = pyramid.POOLS
# Presets of the released code: bounds, and the nominal density.
DEFAULT = (0.10, 0.15, 0.15, 0.35)
FOUR_STEPS = (0.05, 0.15, 0.25, 0.50)


def draw_importance(seed, blocks, lead=(2, 2, 3)):
  """With equal ones among them, whose order then counts."""
  rng = np.random.default_rng(seed)
  x = np.ceil(rng.exponential(size=(*lead, blocks)) * 4)
  return (x / x.sum(axis=-1, keepdims=True)).astype(np.float32)


def oracle_levels(row, end_of, share, first_least=0):
  """One row, by the sheet's section 3.4."""
  blocks = len(row)
  order = sorted(range(blocks), key=lambda j: (-row[j], j))
  levels, start = [0] * blocks, 0
  for level, end in zip(POOLS, end_of(row, order), strict=True):
    length = start if end is None else end
    length = max(length - start, 0)
    if level == 1:
      length = max(length, first_least)
    multiple = max(math.ceil(level * share), 1)
    length = -(-length // multiple) * multiple
    if start + length > blocks:
      length = (blocks - start) // multiple * multiple
    for j in order[start : start + length]:
      levels[j] = level
    start += length
  return levels


@pytest.mark.parametrize("bounds", [DEFAULT, FOUR_STEPS])
@pytest.mark.parametrize(
  ("blocks", "share"), [(13, 0.0), (40, 0.25), (11, 1.0)]
)
def test_levels_by_count(bounds, blocks, share):
  importance = draw_importance(0, blocks)
  levels = pyramid_levels.levels_by_count(
    jnp.asarray(importance), bounds, tile_share=share
  )
  expected = np.apply_along_axis(
    oracle_levels,
    -1,
    importance,
    lambda *_: [int(blocks * bound) for bound in bounds],
    share,
  )
  np.testing.assert_array_equal(levels, expected)
  # A row has just as many blocks as kernels are told.
  most = pyramid_levels.most_blocks(blocks, bounds, tile_share=share)
  for level, number in zip(POOLS, most, strict=True):
    assert ((np.asarray(levels) == level).sum(axis=-1) == number).all()


def test_nominal_densities():
  """85 percent, and that of four steps (fact sheet, section 4)."""
  importance = jnp.asarray(draw_importance(1, 400))
  for bounds, nominal in ((DEFAULT, 0.150), (FOUR_STEPS, 0.15625)):
    levels = pyramid_levels.levels_by_count(importance, bounds)
    np.testing.assert_allclose(pyramid.density(levels), nominal, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(
  "bounds", [(0.4, 0.5, 0.6, 0.8), (0.05, 0.6, 0.7, 0.99)]
)
def test_levels_by_mass(bounds, share):
  blocks = 37
  importance = draw_importance(2, blocks)
  # One block has nearly all: no sum is within a bound.
  importance[0, 0, 0] = np.eye(blocks)[5] * 0.997 + 0.003 / blocks
  levels = pyramid_levels.levels_by_mass(
    jnp.asarray(importance), bounds, tile_share=share
  )

  def ends(row, order):
    mass = np.cumsum(row[order]) / np.sum(row[order])
    counts = [int((mass <= bound + 1e-6).sum()) for bound in bounds]
    return [min(n + 1, blocks) if n else None for n in counts]

  expected = np.apply_along_axis(
    oracle_levels, -1, importance, ends, share, int(0.06 * blocks) + 1
  )
  np.testing.assert_array_equal(levels, expected)
  assert (np.asarray(levels)[0, 0, 0] == 1).sum() == 3


@pytest.mark.parametrize("bounds", [(0.7, 0.8, 0.9, 0.9), (0.3, 0.5, 0.8, 1.0)])
def test_causal_levels_by_energy(bounds):
  """Of the released code for causal models: lo < sum so far <= hi."""
  blocks, text, length, block = 11, 21, 83, 8
  importance = np.tril(draw_importance(8, blocks, (2, 3, blocks)))
  # One has more than all bounds, and a row that looks at nothing.
  importance[0, 0, 9, 4] = 50
  importance[0, 1, 5] = 0
  importance = importance.astype(np.float32)
  levels = pyramid_levels.levels_by_mass(
    jnp.asarray(importance), bounds, causal=True
  )
  levels = pyramid_levels.with_text(levels, text, length, block, block_q=block)
  levels = np.asarray(pyramid_levels.with_diagonal(levels))
  first_text = (length - text) // block
  expected = np.zeros(importance.shape, int)
  for b, h, row in np.ndindex(2, 3, blocks):
    look = importance[b, h, row].astype(float)
    order = sorted(range(blocks), key=lambda j: (-look[j], j))
    so_far = 0.0
    for j in order:
      so_far += look[j] / max(look.sum(), 1e-10)
      lower = 0.0
      for level, upper in zip(POOLS, bounds, strict=True):
        if lower < so_far <= upper + 1e-6:
          expected[b, h, row, j] = level
          break
        lower = upper
    if row >= first_text:
      expected[b, h, row] = 1
    expected[b, h, row, first_text:] = 1
    expected[b, h, row, row + 1 :] = 0
    expected[b, h, row, [0, row]] = 1
  np.testing.assert_array_equal(levels, expected)
  # No row is empty, and all levels are there.
  assert (levels.max(axis=-1) > 0).all()
  assert {0, 1, 2, 4} < set(np.unique(levels).tolist()) | {8}


@pytest.mark.parametrize("key", [None, 0])
def test_importance(key):
  rng = np.random.default_rng(3)
  q = rng.normal(size=(2, 21, 4, 5)).astype(np.float32)
  k = rng.normal(size=(2, 26, 2, 5)).astype(np.float32)
  importance = pyramid_importance.block_importance(
    jnp.asarray(q),
    jnp.asarray(k),
    block_q=4,
    block_k=8,
    key=None if key is None else jax.random.key(key),
  )
  assert importance.shape == (2, 4, 6, 4)
  np.testing.assert_allclose(importance.sum(axis=-1), 1, rtol=1e-6)
  q = np.concatenate([q, *[q[:, -1:]] * 3], axis=1)
  k = np.concatenate([k, *[k[:, -1:]] * 6], axis=1)
  k = np.repeat(k, 2, axis=2)
  scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(5)
  scores = scores.reshape(2, 4, 6, 4, 4, 8)

  def expected(rows, columns):
    r = scores[:, :, :, rows][..., columns].max(axis=-1)
    a = np.exp(r - r.max(axis=-1, keepdims=True)).max(axis=3)
    return a / a.sum(axis=-1, keepdims=True)

  if key is None:
    want = expected(slice(None), slice(None))
    np.testing.assert_allclose(importance, want, rtol=1e-4)
    return
  # One query and two keys of a block, the same in all blocks of a head.
  choices = np.stack(
    [
      expected([row], [a, b])
      for row in range(4)
      for a in range(8)
      for b in range(a)
    ]
  )
  found = np.isclose(choices, importance, rtol=1e-4).all(axis=(3, 4))
  assert found.any(axis=0).all()
  assert len({*found.argmax(axis=0).ravel().tolist()}) > 1


def test_importance_of_bfloat16_is_that_of_the_rounded_numbers():
  rng = np.random.default_rng(7)
  q, k = (jnp.asarray(rng.normal(size=(1, 24, 2, 8)), "bfloat16") for _ in "qk")
  half, full = (
    pyramid_importance.block_importance(*pair, block_q=8, block_k=8)
    for pair in ((q, k), (q.astype(jnp.float32), k.astype(jnp.float32)))
  )
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, full, rtol=1e-5)


def test_importance_has_no_gradient():
  q = jnp.ones((1, 16, 1, 4))
  grad = jax.grad(
    lambda q: pyramid_importance.block_importance(
      q, q, block_q=4, block_k=4
    ).std()
  )(q)
  assert not grad.any()


def test_similarity_caps():
  rng = np.random.default_rng(4)
  k = rng.normal(size=(2, 40, 3, 6)).astype(np.float32)
  k = k + rng.uniform(0, 3, size=(2, 40, 3, 1))
  thresholds = (0.6, 0.55, 0.5)
  caps = pyramid_importance.similarity_caps(jnp.asarray(k), 16, thresholds)
  padded = np.concatenate([k, *[k[:, -1:]] * 8], axis=1)
  unit = padded / np.linalg.norm(padded, axis=-1, keepdims=True)
  seen = set()
  for b in range(2):
    for h in range(3):
      for block in range(3):
        x = unit[b, 16 * block : 16 * block + 16, h]
        means = {
          g: np.mean([x[i] @ x[i + g - 1] for i in range(0, 16, g)])
          for g in (2, 4, 8)
        }
        good = [
          g for g, t in zip((2, 4, 8), thresholds, strict=True) if means[g] > t
        ]
        want = max(good, default=1)
        seen.add(want)
        assert caps[b, h, block] == want
  assert len(seen) > 2


def test_lists_and_levels_are_the_same():
  importance = jnp.asarray(draw_importance(5, 14))
  levels = jnp.asarray(
    np.random.default_rng(6).choice([0, 1, 2, 4, 8], importance.shape)
  )
  lists = pyramid_levels.lists_of_levels(levels, importance)
  assert lists.shape[-1] == 14 + 5
  np.testing.assert_array_equal(pyramid_levels.levels_of_lists(lists), levels)
  row, level, look = (
    np.asarray(x)[0, 0, 0] for x in (lists, levels, importance)
  )
  expected = []
  for group in (1, 2, 4, 8, 0):
    ids = np.flatnonzero(level == group).tolist()
    expected += sorted(ids, key=lambda j: (-look[j], j)) + [-1]
  np.testing.assert_array_equal(row, expected)


def test_text_and_diagonal():
  levels = jnp.full((1, 4, 4), 8)
  text = pyramid_levels.with_text(levels, 17, 64, 16)
  np.testing.assert_array_equal(text[0, 2], [8, 8, 1, 1])
  np.testing.assert_array_equal(
    pyramid_levels.with_text(levels, 0, 63, 16, block_q=16), levels
  )
  # Four tokens in two blocks: the last is not whole.
  for tokens, first in ((2, 3), (3, 2), (4, 2)):
    text = pyramid_levels.with_text(levels, tokens, 50, 16, block_q=16)
    whole = np.arange(4) >= first
    np.testing.assert_array_equal(
      text[0], np.where(whole[:, None] | whole[None], 1, 8)
    )
  for bad, name in (((65, 64, 16), "tokens is 65"), ((4, 80, 16), "needs 5")):
    with pytest.raises(ValueError, match=name):
      pyramid_levels.with_text(levels, *bad)
  with pytest.raises(ValueError, match="block_q=8 needs 8 along axis -2"):
    pyramid_levels.with_text(levels, 4, 64, 16, block_q=8)
  np.testing.assert_array_equal(
    pyramid_levels.with_diagonal(levels)[0],
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 8, 1, 0], [1, 8, 8, 1]],
  )


def test_errors():
  importance = jnp.ones((1, 1, 1, 4)) / 4
  with pytest.raises(ValueError, match="of 4 blocks of keys it leaves none"):
    pyramid_levels.levels_by_count(importance, (0.1, 0.1, 0.1, 0.2))
  for by in (pyramid_levels.levels_by_count, pyramid_levels.levels_by_mass):
    for bounds in ((0.1, 0.2, 0.3), (0.2, 0.1, 0.3, 0.4), (0.1, 0.2, 0.3, 1.1)):
      with pytest.raises(ValueError, match="none below the one before"):
        by(importance, bounds)
  with pytest.raises(ValueError, match="need 3, none for the first"):
    pyramid_importance.similarity_caps(jnp.ones((1, 8, 1, 2)), 8, (0.5,))
  with pytest.raises(ValueError, match="block_q is 0"):
    pyramid_importance.block_importance(
      jnp.ones((1, 8, 1, 2)), jnp.ones((1, 8, 1, 2)), block_q=0, block_k=8
    )
