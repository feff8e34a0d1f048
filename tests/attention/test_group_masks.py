"""Scale-DiT's masks against its rules, pair by pair, and published counts."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import group_masks, masks
from tests.attention.test_masks import check_states


def _visible(text, high, low, window):
  """Section 3.1 of the fact sheet, for each pair of tokens."""
  scale = high[0] // low[0] if low[0] else 1
  tokens = [("text", n, 0) for n in range(text)]
  tokens += [("high", *x) for x in itertools.product(*map(range, high))]
  tokens += [("low", *x) for x in itertools.product(*map(range, low))]
  wide = high[1] // window
  seen = np.zeros((len(tokens), len(tokens)), bool)
  for i, (of, row, column) in enumerate(tokens):
    for j, (kind, key_row, key_column) in enumerate(tokens):
      far = max(abs(row - key_row), abs(column - key_column))
      match of, kind:
        case ("text", "text" | "high") | ("high", "text"):
          seen[i, j] = True
        case "high", "high":
          seen[i, j] = far <= window // 2
        case "low", "low":
          seen[i, j] = far <= window // scale // 2
        case "high", "low":
          own = row // window * wide + column // window
          side = window // scale
          key = key_row // side * wide + key_column // side
          seen[i, j] = abs(own - key) <= 1
  return seen


CASES = [
  (8, (16, 16), (4, 4), 4),
  (5, (8, 12), (4, 6), 4),
  (0, (8, 8), (2, 2), 4),
  (3, (4, 6), (0, 0), 2),
]


@pytest.mark.parametrize(("text", "high", "low", "window"), CASES)
def test_tokens_by_the_rules(text, high, low, window):
  mask = masks.scale_dit_tokens(text, high, low, window=window)
  expected = _visible(text, high, low, window)
  n = len(expected)
  np.testing.assert_array_equal(mask.dense(n, n)[0, 0], expected)
  for sizes in ((1, 1), (8, 16)):
    check_states(mask, expected[None, None], *sizes, exact=sizes == (1, 1))


@pytest.mark.parametrize("hilbert", [False, True])
@pytest.mark.parametrize(("text", "high", "low", "window"), CASES)
def test_blocks_are_where_a_token_sees_another(
  text, high, low, window, hilbert
):
  options = {"window": window, "hilbert": hilbert}
  order = group_masks.scale_dit_order(text, high, low, **options)
  seen = _visible(text, high, low, window)[np.ix_(order, order)]
  n = len(order)
  for block_q, block_k in ((8, 4), (5, 3)):
    blocks = masks.scale_dit_blocks(
      text, high, low, block_q=block_q, block_k=block_k, **options
    )
    padded = np.pad(seen, ((0, -n % block_q), (0, -n % block_k)))
    parts = padded.reshape(-(-n // block_q), block_q, -(-n // block_k), block_k)
    np.testing.assert_array_equal(blocks.table[0, 0], parts.any(axis=(1, 3)))


@pytest.mark.parametrize(
  ("high", "shape", "kept", "kept_by_hilbert"),
  [
    ((64, 64), (38, 76), 1_034, 902),
    ((128, 128), (140, 280), 4_336, 3_692),
    ((256, 256), (548, 1096), 17_912, 15_092),
    ((512, 1024), (4356, 8712), 146_728, None),
  ],
)
def test_published_counts(high, shape, kept, kept_by_hilbert):
  """1024 to 8192 x 16384 pixels (fact sheet); Hilbert's counts are ours."""
  low = tuple(side // 4 for side in high)
  table = masks.scale_dit_blocks(512, high, low).table[0, 0]
  assert table.shape == shape
  assert table.sum() == kept
  if kept_by_hilbert:
    curve = masks.scale_dit_blocks(512, high, low, hilbert=True).table[0, 0]
    assert curve.sum() == kept_by_hilbert


def test_tokens_of_1024_pixels():
  """Section 8 (v), some queries of each kind against the rules."""
  mask = masks.scale_dit_tokens(512, (64, 64), (16, 16))
  n = 512 + 64 * 64 + 16 * 16
  states = mask.tile_states(n, n, 1, n)[0, 0]
  assert (states != masks.EMPTY).all()
  counts = np.asarray(mask.count(n, n)[0, 0])
  assert (counts[:512] == 512 + 4096).all()
  # A corner sees 9 x 9 of high, and two windows of low; the middle 17 x 17.
  assert counts[512] == 512 + 81 + 2 * 16
  middle = 512 + 32 * 64 + 32
  assert counts[middle] == 512 + 289 + 3 * 16
  assert counts[-1] == 9
  assert counts[512 + 4096 + 8 * 16 + 8] == 25


def test_blocks_attend_as_their_dense_mask_does():
  """Section 8 (iv): rectangular blocks, in the interpreted kernel too."""
  rng = np.random.default_rng(0)
  blocks = masks.scale_dit_blocks(
    16, (16, 16), (4, 4), window=8, block_q=32, block_k=16
  )
  n = 16 + 256 + 16
  q, k, v = (
    rng.standard_normal((1, n, 2, 8)).astype(np.float32) for _ in range(3)
  )
  seen = blocks.table[0, 0].repeat(32, 0).repeat(16, 1)[:n, :n]
  scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
  scores = np.where(seen, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum("bhqk,bkhd->bqhd", weights, v)
  for implementation in ("xla", "gpu_interpret"):
    out = attention.dot_product_attention(
      *map(jnp.asarray, (q, k, v)), mask=blocks, implementation=implementation
    )
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("arguments", "window", "message"),
  [
    ((0, (8, 8), (2, 2)), 3, r"window is 3; it must divide .* \(8, 8\)"),
    ((0, (8, 8), (2, 4)), 4, r"low is \(2, 4\); .* \(8, 8\)"),
    ((0, (6, 6), (2, 2)), 2, "window is 2; .* multiple of 3"),
    ((0, (8,), (2, 2)), 2, r"high is \(8,\)"),
    ((-1, (8, 8), (2, 2)), 4, "text_tokens is -1"),
    ((0, (8, 8), (2, -2)), 4, "a side of low is -2"),
  ],
)
def test_errors(arguments, window, message):
  for make in (masks.scale_dit_tokens, masks.scale_dit_blocks):
    with pytest.raises(ValueError, match=message):
      make(*arguments, window=window)
