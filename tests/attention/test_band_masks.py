"""Bands of positions, given as numbers, as arrays and token by token."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import masks
from tests.attention.mask_states import check_states, dense, positions

Q_LEN, KV_LEN = 7, 10
# Lengths and tiles where all is NumPy, and fast.
SIZES = [
  *itertools.product((1, 4, 7, 8), (1, 5, 8, 10), (1, 3, 4, 8), (2, 4, 16)),
]
BANDS = [
  (lambda: masks.causal(), None, 0),
  (lambda: masks.causal(3), None, 3),
  (lambda: masks.causal(-2), None, -2),
  (lambda: masks.sliding_window(2), -2, 0),
  (lambda: masks.sliding_window(1, 3), -1, 3),
  (lambda: masks.sliding_window(2, 1, offset=4), 2, 5),
  (lambda: masks.sliding_window(0, 0, offset=-3), -3, -3),
  (lambda: masks.sliding_window(99, 99), -99, 99),
]


def _band(q_len, kv_len, lower, upper):
  i, j = positions(q_len, kv_len)
  return (j - i <= upper) & ((j - i >= lower) if lower is not None else True)


@pytest.mark.parametrize(("make", "lower", "upper"), BANDS)
def test_numbers(make, lower, upper):
  mask = make()
  for q_len, kv_len, block_q, block_k in SIZES:
    visible = _band(q_len, kv_len, lower, upper)
    states = mask.tile_states(q_len, kv_len, block_q, block_k)
    # Kernels list the tiles before the program runs.
    assert isinstance(states, np.ndarray)
    check_states(mask, visible[None, None], block_q, block_k, exact=True)
  visible = _band(Q_LEN, KV_LEN, lower, upper)
  np.testing.assert_array_equal(dense(mask, Q_LEN, KV_LEN)[0, 0], visible)


def test_numbers_are_known_inside_of_a_transformation():
  seen = []

  def run(mask):
    seen.append(mask.tile_states(8, 8, 4, 4))
    return mask

  mask = masks.sliding_window(3, offset=1)
  assert jax.jit(run)(mask) == mask
  assert isinstance(seen[0], np.ndarray)


TILES = [(3, 4), (7, 5), (8, 16), (1, 2), (1, 10), (7, 1)]
# Arrays, and the lower and upper bound of each row of the batch.
TRACED = [
  (lambda x: masks.causal(x[0]), lambda x: (-99, x[0])),
  (lambda x: masks.causal(x), lambda x: (-99, x)),
  (lambda x: masks.sliding_window(2, 1, offset=x), lambda x: (x - 2, x + 1)),
  (
    lambda x: masks.sliding_window(abs(x), x[1], offset=3),
    lambda x: (3 - abs(x), 3 + x[1]),
  ),
]


@pytest.mark.parametrize(("make", "bounds"), TRACED)
def test_arrays(make, bounds):
  offsets = np.array([-3, 2, 6])
  visible = np.stack(
    [
      _band(
        Q_LEN, KV_LEN, *(np.broadcast_to(x, 3)[row] for x in bounds(offsets))
      )
      for row in range(3)
    ]
  )[:, None]
  mask = make(jnp.asarray(offsets))
  np.testing.assert_array_equal(dense(mask, Q_LEN, KV_LEN, 3), visible)
  for tile in TILES:
    check_states(mask, visible, *tile, exact=True)


def _seen(q, k, before, after):
  """Positions [batch, length] and bounds -> [batch, 1, q_len, kv_len]."""
  q, k = q[:, None, :, None], k[:, None, None, :]
  seen = (q >= 0) & (k >= 0)
  if before is not None:
    seen &= k >= q - np.reshape(before, (-1, 1, 1, 1))
  if after is not None:
    seen &= k <= q + np.reshape(after, (-1, 1, 1, 1))
  return seen


@pytest.mark.parametrize(
  ("before", "after"),
  [(None, 0), (3, 0), (2, 2), (None, None), (np.array([0, 1, 4, 9]), 0)],
)
def test_positions_in_any_order(before, after):
  rng = np.random.default_rng(0)
  q, k = (rng.integers(-1, 15, (4, n)) for n in (Q_LEN, KV_LEN))
  # A ring buffer that has gone round, and one that is not full.
  k[0], q[0] = (np.arange(KV_LEN) - 4) % KV_LEN + 7, np.arange(Q_LEN) + 12
  k[1, 6:], q[1, :2] = -1, -1
  if isinstance(before, np.ndarray):
    mask = masks.positions(*map(jnp.asarray, (q, k, before, after)))
  else:
    mask = masks.positions(jnp.asarray(q), jnp.asarray(k), before, after)
  visible = _seen(q, k, before, after)
  np.testing.assert_array_equal(dense(mask, Q_LEN, KV_LEN, 4), visible)
  for tile in TILES:
    # One token against all is exact, as what is seen by nobody must be known.
    exact = tile in ((1, KV_LEN), (Q_LEN, 1))
    check_states(mask, visible, *tile, exact=exact)


def test_positions_of_a_cache_are_known_tile_by_tile():
  """As a decode step meets them: few tiles are neither empty nor full."""
  lengths = np.array([5, 16, 9])
  slots = np.arange(16)[None, :]
  k = np.where(slots < lengths[:, None], slots, -1)
  mask = masks.positions(jnp.asarray(lengths[:, None] - 1), jnp.asarray(k))
  visible = _seen(lengths[:, None] - 1, k, None, 0)
  states = check_states(mask, visible, 1, 4, exact=True)
  expected = [[2, 1, 0, 0], [2, 2, 2, 2], [2, 2, 1, 0]]
  np.testing.assert_array_equal(states[:, 0, 0], expected)


def test_errors_name_argument_and_value():
  with pytest.raises(ValueError, match="before is -1; it must be at least 0"):
    masks.sliding_window(-1)
  with pytest.raises(ValueError, match="after is -2"):
    masks.sliding_window(1, -2)
  with pytest.raises(ValueError, match=r"Band, has shape \(3,\); .* \[2\]"):
    masks.causal(jnp.array([1, 2, 3])).dense(4, 4, batch=2)
  x = jnp.zeros((2, 4), jnp.int32)
  with pytest.raises(
    ValueError, match=r"Band, has shape \(2, 4\); .* \[2, 5\]"
  ):
    masks.positions(x, x).dense(4, 5, batch=2)
