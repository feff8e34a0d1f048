"""Pyramid sparse attention against full attention and a plain restatement."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, pyramid, pyramid_importance, pyramid_levels
from tests.attention import kernel_runs

BLOCK = 16
LENGTH, HEADS, DIM = 88, 2, 8
BLOCKS = -(-LENGTH // BLOCK)


def draw(seed, length=LENGTH, heads=HEADS, dtype=jnp.float32, batch=2):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.normal(size=(batch, length, heads, DIM)), dtype)
    for _ in range(3)
  )


def some_levels(seed, zeros=True, blocks=BLOCKS, lead=(2, HEADS)):
  rng = np.random.default_rng(seed)
  levels = rng.choice([0, 1, 2, 4, 8][not zeros :], (*lead, blocks, blocks))
  levels[..., 0] = np.maximum(levels[..., 0], 1)
  return levels.astype(np.int32)


attend = functools.partial(
  pyramid.pyramid_attention, block_q=BLOCK, block_k=BLOCK
)


def oracle(q, k, v, levels, causal=False):
  """Row by row in float64: each group of keys that there are is one key."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  batch, length, heads, dim = q.shape
  levels = np.broadcast_to(levels, (batch, heads, *levels.shape[2:]))
  for b, h, i in itertools.product(range(batch), range(heads), range(length)):
    scores, values = [], []
    for block, level in enumerate(levels[b, h, i // BLOCK]):
      end = min((block + 1) * BLOCK, length)
      for first in range(block * BLOCK, end, level) if level else ():
        group = slice(first, min(first + level, length))
        if causal and group.stop - 1 > i:
          continue
        score = q[b, i, h] @ k[b, group, h].mean(axis=0) / np.sqrt(dim)
        scores.append(score + np.log(group.stop - first))
        values.append(v[b, group, h].mean(axis=0))
    weights = np.exp(np.array(scores) - max(scores))
    out[b, i, h] = weights @ np.array(values) / weights.sum()
  return out


@pytest.mark.parametrize("causal", [False, True])
def test_equals_restatement(causal):
  q, k, v = draw(0)
  levels = some_levels(1)
  if causal:
    levels = np.array(pyramid_levels.with_diagonal(jnp.asarray(levels)))
    levels[..., 1:, 0] = 2
  out = attend(q, k, v, levels, causal=causal)
  np.testing.assert_allclose(
    out, oracle(q, k, v, levels, causal), rtol=2e-5, atol=2e-6
  )


def test_level_one_is_full_attention():
  q, k, v = draw(2)
  out = attend(q, k, v, np.ones((1, 1, BLOCKS, BLOCKS), np.int32))
  full = attention.dot_product_attention(q, k, v)
  np.testing.assert_allclose(out, full, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [LENGTH, 81])
def test_equal_keys_make_means_exact(length):
  """Also where the last group has one key: copies of it would count."""
  q, *kv = draw(3, length)
  k, v = (jnp.repeat(x[:, ::8], 8, axis=1)[:, :length] for x in kv)
  out = attend(q, k, v, some_levels(4, zeros=False))
  full = attention.dot_product_attention(q, k, v)
  np.testing.assert_allclose(out, full, rtol=3e-6, atol=3e-6)


def test_levels_of_zero_and_one_are_a_block_mask():
  q, k, v = draw(5)
  levels = np.minimum(some_levels(6), 1)
  mask = masks.blocks(levels == 1, BLOCK)
  expected = attention.dot_product_attention(q, k, v, mask=mask)
  np.testing.assert_allclose(
    attend(q, k, v, levels), expected, rtol=1e-6, atol=1e-6
  )


def test_causal_rows_know_nothing_of_later_tokens():
  q, k, v = draw(7)
  # Means that reach beyond a query are there to be hidden.
  levels = some_levels(8)
  levels[..., 0] = 1
  run = jax.jit(functools.partial(attend, levels=levels, causal=True))
  before = run(q, k, v)
  for place in (1, 17, 40, 87):
    changed = [x.at[:, place:].add(1.0) for x in (q, k, v)]
    after = run(*changed)
    np.testing.assert_array_equal(after[:, :place], before[:, :place])
    assert (np.asarray(after)[:, place] != np.asarray(before)[:, place]).any()


def test_shared_keys_and_bfloat16():
  q, _, _ = draw(9, heads=4)
  _, k, v = draw(10)
  levels = some_levels(11, lead=(1, 4))
  wide = [jnp.repeat(x, 2, axis=2) for x in (k, v)]
  expected = attend(q, *wide, levels)
  out = attend(q, k, v, levels)
  np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
  half = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)), levels)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    half.astype(jnp.float32), expected, rtol=0.1, atol=0.04
  )


def test_gradients_equal_finite_differences():
  with jax.enable_x64(True):
    q, k, v = (jnp.asarray(x, jnp.float64) for x in draw(12, 40, batch=1))
    levels = some_levels(13, blocks=3, lead=(1, HEADS))
    rng = np.random.default_rng(14)
    weight = jnp.asarray(rng.normal(size=q.shape))

    def loss(qkv):
      # The scores themselves are float32.
      return jnp.sum(attend(*qkv, levels) * weight)

    direction = [jnp.asarray(rng.normal(size=q.shape)) for _ in range(3)]
    gradient = jax.grad(loss)((q, k, v))
    slope = sum(
      jnp.sum(g * d) for g, d in zip(gradient, direction, strict=True)
    )
    step = 1e-2
    ends = [
      loss(
        [x + s * step * d for x, d in zip((q, k, v), direction, strict=True)]
      )
      for s in (1, -1)
    ]
    np.testing.assert_allclose(
      slope, (ends[0] - ends[1]) / (2 * step), rtol=3e-3
    )


def test_a_kernel_walks_as_far_as_it_is_told():
  """Of traced levels the most tiles of a row are all that it goes through."""
  q, k, v = draw(15, 256, batch=1)
  bounds = (0.25, 0.25, 0.5, 0.75)
  block = 128

  @functools.partial(jax.jit, static_argnums=(3, 4))
  def run(q, k, v, implementation, most):
    importance = pyramid_importance.block_importance(
      q, k, block_q=block, block_k=block
    )
    levels = pyramid_levels.levels_by_count(
      jnp.tile(importance, (1, 1, 1, 2)), bounds
    )
    return pyramid.pyramid_attention(
      q,
      jnp.concatenate([k, k], axis=1),
      jnp.concatenate([v, v], axis=1),
      levels,
      block_q=block,
      block_k=block,
      most=most,
      implementation=implementation,
    )

  most = pyramid_levels.most_blocks(4, bounds)
  assert most == (1, 0, 1, 1)
  expected = run(q, k, v, "xla", None)
  out = run(q, k, v, "gpu_interpret", most)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
  # Fewer steps leave something out: the list is as long as was said.
  short = run(q, k, v, "gpu_interpret", (1, 0, 1, 0))
  assert np.abs(np.asarray(short - expected)).max() > 1e-3


# Kernel, sides of blocks, pools, tokens, whether causal, dtype. Sides are those
# of the paper's presets: blocks of 64 and 32 keys have fewer means of eight
# than a tile has rows, and so have those of 128 on a TPU.
KERNELS = {
  "gpu 128": ("gpu", (128, 128), (1, 2, 4, 8), 200, False, jnp.float32),
  "gpu 64": ("gpu", (128, 64), (1, 2, 4, 8), 203, False, jnp.bfloat16),
  "gpu 32, causal": ("gpu", (32, 32), (1, 2, 4, 8), 93, True, jnp.float32),
  "tpu 128": ("tpu", (128, 128), (1, 2, 4, 8), 200, False, jnp.bfloat16),
  "tpu 256, causal": ("tpu", (256, 256), (1, 2), 300, True, jnp.float32),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_has_the_gradients_of_the_reference(name):
  """Of traced levels of each row and head, of keys that heads share."""
  kernel, (block_q, block_k), pools, length, causal, dtype = KERNELS[name]
  q, out_bar, _ = draw(16, length, heads=4, dtype=dtype, batch=1)
  k, v, _ = draw(18, length, dtype=dtype, batch=1)
  rng = np.random.default_rng(17)
  shape = (1, 4, -(-length // block_q), -(-length // block_k))
  levels = rng.choice([0, *pools], shape).astype(np.int32)
  levels[..., 0] = np.maximum(levels[..., 0], 1)
  if causal:
    levels = np.array(pyramid_levels.with_diagonal(jnp.asarray(levels)))

  def run(implementation, arrays):
    function = functools.partial(
      pyramid.pyramid_attention,
      levels=jnp.asarray(levels),
      block_q=block_q,
      block_k=block_k,
      pools=pools,
      causal=causal,
      implementation=implementation,
    )
    return kernel_runs.with_gradients(function)(arrays, out_bar)

  arrays = {"q": q, "k": k, "v": v}
  expected = run("xla", kernel_runs.in_float32(arrays))
  # Means are rounded to the dtype of the keys.
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  kernel_runs.assert_close(
    run(f"{kernel}_interpret", arrays), expected, tolerance
  )


@pytest.mark.parametrize(
  ("block_k", "platform", "tile"),
  [
    (128, "cpu", 16),
    (32, "cpu", 4),
    (128, "gpu", 16),
    (64, "gpu", 16),
    (32, "gpu", 16),
    (192, "gpu", 32),
    (1024, "tpu", 128),
    (128, "tpu", 128),
  ],
)
def test_tiles_hold_what_blocks_have(block_k, platform, tile):
  """Rows and table, level by level, from what a block has."""
  assert pyramid.kernel_tile(block_k, platform=platform) == tile
  x = 1 + jnp.arange(block_k + 5.0).reshape(1, -1, 1, 1)
  rows = pyramid.pyramid(x, block_k, tile=tile)[0, :, 0, 0]
  table = pyramid.level_table(np.array([[2, 8]]), block_k, tile=tile)[0]
  expected, seen = [], []
  for pool in pyramid.POOLS:
    for block in range(2):
      own = x[0, block * block_k :, 0, 0][:block_k]
      means = [own[n : n + pool].mean() for n in range(0, len(own), pool)]
      tiles = -(-block_k // pool // tile)
      expected += means + [0.0] * (tiles * tile - len(means))
      seen += [(block, pool) in ((0, 2), (1, 8))] * tiles
  np.testing.assert_allclose(rows, np.array(expected), rtol=1e-6)
  assert table.tolist() == seen


def test_errors():
  q, k, v = draw(19, 32, batch=1)
  levels = np.ones((1, 1, 2, 2), np.int32)
  with pytest.raises(ValueError, match="block_k is 12; means of 8 keys need"):
    pyramid.pyramid_attention(q, k, v, levels, block_q=16, block_k=12)
  with pytest.raises(ValueError, match=r"levels has shape \(1, 1, 2, 2\); 32"):
    pyramid.pyramid_attention(q, k, v, levels, block_q=8, block_k=16)
  with pytest.raises(ValueError, match=r"levels has \[3\]; it takes 0 and"):
    attend(q, k, v, levels * 3)
  empty = levels.copy()
  empty[0, 0, 1] = 0
  with pytest.raises(ValueError, match=r"all 0 for the queries .*\[0, 0, 1\]"):
    attend(q, k, v, empty)
  with pytest.raises(ValueError, match="causal is True, and q has 16 tokens"):
    attend(q[:, :16], k, v, levels[:, :, :1], causal=True)
  with pytest.raises(ValueError, match=r"pools is \(1, 3, 4\)"):
    attend(q, k, v, levels, pools=(1, 3, 4))
  for most in ((1, 1, 1), (0, 0, 0, 0)):
    with pytest.raises(ValueError, match=r"most is \(.*\); it must have"):
      attend(q, k, v, levels, most=most)


def test_density():
  levels = np.array([[1, 2, 0, 4], [8, 8, 8, 8]])
  assert pyramid.density(levels) == (1.75 / 4 + 1 / 8) / 2
  assert pyramid.density(jnp.asarray(levels)) == (1.75 / 4 + 1 / 8) / 2
