"""Massive activations that were put there are found, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import massive_activations


def _state():
  rng = np.random.default_rng(0)
  state = rng.uniform(0.5, 1.5, (2, 7, 5)) * rng.choice([-1, 1], (2, 7, 5))
  state[0, 0, 3], state[1, 4, 1], state[1, 4, 2] = -3000, 2000, 90
  return state.astype(np.float32)


def test_they_are_large_and_far_above_the_median():
  state = _state()
  found = jax.jit(massive_activations.massive)(state)
  np.testing.assert_array_equal(np.argwhere(found), [[0, 0, 3], [1, 4, 1]])
  # Not large by itself, or not beside the others.
  assert not massive_activations.massive(jnp.asarray(state / 100)).any()
  even = jnp.where(jnp.abs(state) > 100, state, 50 * state)
  assert not massive_activations.massive(even).any()
  assert massive_activations.massive(even, ratio=20.0).sum() == 3


def test_the_largest_of_each_row():
  state = _state()
  positions = np.tile(np.arange(7), (2, 1))
  found = massive_activations.largest(jnp.asarray(state), count=2)
  assert found.values[0, 0] == -3000
  np.testing.assert_array_equal(found.values[1], [2000, 90])
  np.testing.assert_array_equal(found.tokens[1], [4, 4])
  np.testing.assert_array_equal(found.channels[1], [1, 2])
  median = np.median(np.abs(state), axis=(1, 2))
  np.testing.assert_allclose(found.ratios[:, 0], [3000, 2000] / median, 1e-5)
  # Padding is neither found nor in the median.
  positions[0, 0] = -1
  state[0, 0] = np.nan
  found = massive_activations.largest(jnp.asarray(state), positions, 1)
  rest = np.abs(state[0, 1:])
  assert abs(found.values[0, 0]) == rest.max()
  expected = rest.max() / np.median(rest)
  np.testing.assert_allclose(found.ratios[0, 0], expected, rtol=1e-5)


def test_errors():
  with pytest.raises(ValueError, match="count is 36; it must be from 1 to 35"):
    massive_activations.largest(jnp.asarray(_state()), count=36)
  with pytest.raises(ValueError, match=r"positions has shape \(2, 6\)"):
    massive_activations.massive(jnp.asarray(_state()), np.zeros((2, 6)))
