"""Orders of tokens: each has all of them, and windows are runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, permutations


def test_windows_of_windows():
  """By where a token lies, for all tokens."""
  shape, sizes = (2, 8, 12), ((2, 4, 6), (1, 2, 3))
  order = permutations.windows(shape, *sizes)
  place = np.array(np.unravel_index(order, shape))
  keys, box = [], np.array(shape)
  for size in sizes:
    # The number of the window in what it is in, row-major.
    within = place % box[:, None]
    keys.append(within // np.array(size)[:, None])
    box = np.array(size)
  keys.append(place % box[:, None])
  keys = np.concatenate(keys).T.tolist()
  assert keys == sorted(keys)
  assert len({tuple(key) for key in keys}) == 2 * 8 * 12


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16])
def test_hilberts_curve_steps_to_neighbours(side):
  """Section 8 (ii) of Scale-DiT's fact sheet."""
  order = permutations.hilbert_windows((side, 3 * side), (side, side))
  place = np.stack(np.unravel_index(order, (side, 3 * side)), axis=1)
  for number, window in enumerate(place.reshape(3, side * side, 2)):
    steps = np.abs(np.diff(window, axis=0)).sum(axis=1)
    assert (steps == 1).all()
    assert (window[:, 1] // side == number).all()
  assert sorted(order) == list(range(3 * side * side))


def _index(x, y, side):
  """The repository's loop, on Python's integers (section 3.3)."""
  distance, s = 0, side // 2
  while s > 0:
    rx, ry = int(bool(x & s)), int(bool(y & s))
    distance += s * s * ((3 * rx) ^ ry)
    if ry == 0:
      if rx == 1:
        x, y = s - 1 - x, s - 1 - y
      x, y = y, x
    s //= 2
  return distance


def test_hilberts_index_is_the_released_one():
  x, y = np.indices((16, 16))
  expected = np.vectorize(_index)(x, y, 16)
  np.testing.assert_array_equal(permutations.hilbert_index(x, y, 16), expected)


def test_windows_that_are_no_square_keep_the_curve():
  order = permutations.hilbert_windows((3, 5), (3, 5))
  distance = [_index(n // 5, n % 5, 8) for n in order]
  assert distance == sorted(distance)
  assert sorted(order) == list(range(15))


# Made by the code of J. Cerveny that PSA's repository has.
GILBERT = """
  0 12 13 1 5 17 16 4 8 20 21 9 10 22 23 11 7 19 18 6 2 14 15 3
"""


def test_gilberts_curve_is_the_released_one():
  assert permutations.gilbert((2, 3, 4)).tolist() == [
    *map(int, GILBERT.split())
  ]
  # Wan 2.1's 81 frames of 720 x 1280 pixels, and an image.
  for shape, total in (
    ((21, 45, 80), 108_063_508_485_436),
    ((3, 5, 7), 294_186),
    ((5, 7), 11_125),
  ):
    order = permutations.gilbert(shape).astype(np.int64)
    assert (order * np.arange(len(order))).sum() == total
    np.testing.assert_array_equal(np.sort(order), np.arange(len(order)))


@pytest.mark.parametrize(
  "shape", [(4, 6, 2), (2, 10, 14), (1, 8, 8), (6, 22), (9,), (1, 1, 1)]
)
def test_gilberts_curve_steps_to_neighbours(shape):
  order = permutations.gilbert(shape)
  assert sorted(order) == list(range(np.prod(shape)))
  place = np.stack(np.unravel_index(order, shape))
  assert (np.abs(np.diff(place)).sum(axis=0) == 1).all()


def test_runs_of_gilberts_curve_are_cubes():
  place = np.unravel_index(permutations.gilbert((8, 8, 8)), (8, 8, 8))
  for along in place:
    runs = along.reshape(8, 64)
    assert (np.ptp(runs, axis=1) == 3).all()


def test_an_order_and_back():
  order = permutations.joined(
    3, permutations.windows((4, 6), (2, 3)), np.array([1, 0])
  )
  assert order[:3].tolist() == [0, 1, 2]
  assert order[-2:].tolist() == [28, 27]
  np.testing.assert_array_equal(order[permutations.inverse(order)], range(29))


def test_attention_does_not_depend_on_the_order():
  """Section 8 (iii): tokens, mask and output change places together."""
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.standard_normal((2, 32, 2, 4)), jnp.float32)
    for _ in range(3)
  )
  mask = masks.inward_window((4, 8), (1, 2))
  order = permutations.hilbert_windows((4, 8), (4, 4))

  def moved(q, k, v):
    out = attention.dot_product_attention(
      *(x[:, order] for x in (q, k, v)), mask=mask.reordered(order)
    )
    return out[:, permutations.inverse(order)]

  def plain(q, k, v):
    return attention.dot_product_attention(q, k, v, mask=mask)

  bar = jnp.asarray(rng.standard_normal(v.shape), jnp.float32)
  (out, pull), (expected, expected_pull) = (
    jax.vjp(f, q, k, v) for f in (moved, plain)
  )
  np.testing.assert_allclose(out, expected, atol=1e-6)
  for got, want in zip(pull(bar), expected_pull(bar), strict=True):
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: permutations.windows((4, 6), (2, 4)),
      r"a window is \(2, 4\); .* in \(4, 6\)",
    ),
    (lambda: permutations.windows((4, 6), (2,)), r"window is \(2,\)"),
    (
      lambda: permutations.hilbert_windows((2, 4, 4), (1, 2, 2)),
      r"shape is \(2, 4, 4\)",
    ),
    (
      lambda: permutations.hilbert_index(np.zeros(1), np.zeros(1), 6),
      "side is 6",
    ),
    (lambda: permutations.inverse(np.array([0, 2])), "each number below"),
    (lambda: permutations.inverse(np.array([0, 0])), "each number below"),
    (lambda: permutations.windows((0, 4), (1, 1)), "a side of shape is 0"),
    (
      lambda: permutations.gilbert((2, 2, 2, 2)),
      r"shape is \(2, 2, 2, 2\); .* one to three axes",
    ),
    (lambda: permutations.gilbert((2, 0)), "a side of shape is 0"),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
