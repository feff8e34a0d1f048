"""Against four loops, with tables that have no symmetry to hide behind."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention


def _table(window, heads=2):
  side = 2 * window - 1
  return jax.random.normal(jax.random.key(window), (heads, side, side))


def _four_loops(table, p):
  table = np.asarray(table)
  bias = np.zeros((table.shape[0], p * p, p * p))
  for i, j, m, n in itertools.product(range(p), repeat=4):
    bias[:, i * p + j, m * p + n] = table[:, m - i + p - 1, n - j + p - 1]
  return bias


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_equals_four_loops(window):
  table = _table(window)
  bias = attention.relative_position_bias(table)
  np.testing.assert_array_equal(bias, _four_loops(table, window))


@pytest.mark.parametrize(("block", "window"), [(1, 3), (2, 4), (4, 6), (3, 3)])
def test_blocks_with_a_halo_equal_four_loops(block, window):
  side = block + window - 1
  table = jax.random.normal(jax.random.key(side), (2, side, side))
  bias = attention.relative_halo_bias(table, block)
  expected = np.zeros((2, block, block, window, window))
  for i, j in np.ndindex(block, block):
    for m, n in np.ndindex(window, window):
      expected[:, i, j, m, n] = table[:, m - i + block - 1, n - j + block - 1]
  np.testing.assert_array_equal(bias, expected.reshape(2, block**2, window**2))


def test_tables_that_fit_no_halo():
  with pytest.raises(ValueError, match="for blocks of block_size b=4"):
    attention.relative_halo_bias(jnp.zeros((2, 6, 6)), 4)


def test_gradient_counts_the_pairs_of_each_offset():
  window = 4
  grad = jax.grad(lambda t: attention.relative_position_bias(t).sum())
  pairs = window - np.abs(np.arange(1 - window, window))
  expected = np.broadcast_to(np.outer(pairs, pairs), (2, 7, 7))
  np.testing.assert_array_equal(grad(_table(window)), expected)


def test_neither_direction_gathers_or_scatters():
  loss = lambda table: jnp.sin(attention.relative_position_bias(table)).sum()
  program = str(jax.make_jaxpr(jax.grad(loss))(_table(7)))
  assert "gather" not in program
  assert "scatter" not in program


def _bilinear(table, side):
  """Half-pixel centres, borders repeated, in plain numpy."""
  old = table.shape[-1]
  where = np.clip((np.arange(side) + 0.5) * old / side - 0.5, 0, old - 1)
  low = np.minimum(where.astype(int), old - 2)
  share = where - low
  rows = (
    table[:, low] * (1 - share)[None, :, None]
    + table[:, low + 1] * share[None, :, None]
  )
  return (
    rows[..., low] * (1 - share)[None, None]
    + rows[..., low + 1] * share[None, None]
  )


@pytest.mark.parametrize("window", [12, 16, 5])
def test_resize_is_bilinear(window):
  table = _table(7)
  resized = attention.resize_relative_table(table, window)
  expected = _bilinear(np.asarray(table, np.float64), 2 * window - 1)
  np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_resize_keeps_a_table_that_fits():
  table = _table(7)
  assert attention.resize_relative_table(table, 7) is table


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 3, 5), (3, 3)])
def test_bad_tables(shape):
  with pytest.raises(ValueError, match="table has shape"):
    attention.relative_position_bias(jnp.zeros(shape))
  with pytest.raises(ValueError, match="table has shape"):
    attention.resize_relative_table(jnp.zeros(shape), 3)


def test_bad_window():
  with pytest.raises(ValueError, match="window_size is 0"):
    attention.resize_relative_table(_table(3), 0)
