"""Capacity by three criteria, against the figures of the derivation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import capacity

TRIALS = 80
# How many associations there are for each width: the curves' ends.
NUMBERS = {32: 16, 64: 64, 128: 41, 256: 82}
# RMS error and worst interference at n = floor(sqrt(d)), d / 4 and d.
MEASURED = {
  64: [(8, 0.323, 0.94), (16, 0.471, 1.98), (64, 0.994, 7.7)],
  128: [(11, 0.279, 0.99), (32, 0.490, 2.85)],
  256: [(16, 0.243, 1.01), (64, 0.496, 3.92)],
}


@functools.cache
def curves(dim, number):
  """The curves of `number` random associations, [TRIALS, number] each."""
  keys = capacity.random_units(jax.random.key(dim), (TRIALS, number, dim))
  values = capacity.random_units(jax.random.key(1), (TRIALS, number, dim))

  @jax.jit
  def run(keys, values):
    error = jax.vmap(capacity.root_mean_square_error)(keys, values)
    right = capacity.nearest_is_right(capacity.recalled(keys, values), values)
    return error, capacity.worst_interference(keys), right.mean()

  return run(keys, values)


@pytest.mark.parametrize("dim", MEASURED)
def test_the_figures_of_the_derivation(dim):
  found, interference, right = curves(dim, NUMBERS[dim])
  assert right == 1.0
  for number, error, worst in MEASURED[dim]:
    mean = np.sqrt((found[:, number - 1] ** 2).mean())
    np.testing.assert_allclose(mean, error, rtol=0.06)
    np.testing.assert_allclose(mean, np.sqrt((number - 1) / dim), rtol=0.05)
    mean = interference[:, number - 1].mean()
    np.testing.assert_allclose(mean, worst, rtol=0.06)


def test_far_beyond_the_width_the_nearest_value_is_mostly_right():
  error, worst, right = curves(64, 256)
  np.testing.assert_allclose(error[:, -1].mean(), 1.996, rtol=0.03)
  np.testing.assert_allclose(worst[:, -1].mean(), 28.9, rtol=0.03)
  assert right == pytest.approx(0.76, abs=0.03)


def test_exponents():
  """A half by the worst case, one by the average case."""
  dims = np.array([*NUMBERS])
  worst, average = [], []
  for dim in dims:
    error, interference, _ = curves(int(dim), NUMBERS[dim])
    worst.append(capacity.capacity(interference, 1.0))
    average.append(capacity.capacity(error, 0.5))
  np.testing.assert_allclose(worst, [6, 8, 11, 16], atol=1)
  # The prediction is where the error is at the limit, not below it.
  np.testing.assert_allclose(average, 1 + dims / 4, rtol=0.05, atol=1)
  assert 0.4 < capacity.slope(dims, worst) < 0.6
  assert 0.9 < capacity.slope(dims, average) < 1.1


def test_orthonormal_keys_forget_nothing():
  keys = capacity.orthonormal(jax.random.key(0), 32, 32)
  values = capacity.random_units(jax.random.key(1), (32, 8))
  np.testing.assert_allclose(capacity.recalled(keys, values), values, atol=1e-5)
  assert capacity.worst_interference(keys)[-1] < 1e-4
  with pytest.raises(ValueError, match=r"number is 33; .* dim=32"):
    capacity.orthonormal(jax.random.key(0), 33, 32)


def test_curves_by_definition():
  """With keys that have much in common and values of other norms; float64."""
  keys = capacity.random_units(jax.random.key(0), (7, 5), correlation=0.6)
  values = 3 * jax.random.normal(jax.random.key(1), (7, 4))
  k, v = (np.asarray(x, np.float64) for x in (keys, values))
  np.testing.assert_allclose(np.linalg.norm(k, axis=1), 1, rtol=1e-6)
  error = capacity.root_mean_square_error(keys, values)
  worst = capacity.worst_interference(keys)
  for n in range(1, 8):
    products = k[:n] @ k[:n].T
    squares = ((products @ v[:n] - v[:n]) ** 2).sum()
    expected = np.sqrt(squares / (v[:n] ** 2).sum())
    np.testing.assert_allclose(error[n - 1], expected, rtol=1e-4, atol=1e-6)
    expected = (np.abs(products).sum(axis=1) - 1).max()
    np.testing.assert_allclose(worst[n - 1], expected, atol=1e-5)
  many = capacity.random_units(jax.random.key(2), (400, 64), correlation=0.6)
  products = np.asarray(many @ many.T)[np.triu_indices(400, 1)]
  assert products.mean() == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (1, 4), (4, 2), (8, 1)])
def test_redundant_heads_and_depth(layers, heads):
  """e sqrt(layers / heads), relative to one value."""
  number, dim = 64, 64
  first, second = jax.random.split(jax.random.key(heads))
  keys = capacity.random_units(first, (layers, heads, number, dim))
  values = capacity.random_units(second, (layers, number, dim))
  error = jax.jit(capacity.residual_error)(keys, values)
  predicted = np.sqrt((number - 1) / dim * layers / heads)
  np.testing.assert_allclose(error, predicted, rtol=0.1)


def test_errors():
  with pytest.raises(ValueError, match=r"limit is 1.0.*stays below, at 0.5"):
    capacity.capacity(jnp.full((2, 9), 0.5), 1.0)
  with pytest.raises(ValueError, match=r"correlation is 1.0; it must be"):
    capacity.random_units(jax.random.key(0), (3, 4), correlation=1.0)
