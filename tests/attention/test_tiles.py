"""Operands: what their axes mean, and how axes of size one come and go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import tiles


@pytest.mark.parametrize(
  "axes", ["", "b", "h", "bh", "q", "bk", "hqk", "bhqr", "rk", "bhqk"]
)
def test_axes(axes):
  operand = tiles.Operand(jnp.zeros((2,) * len(axes)), axes)
  assert operand.inner == axes.lstrip("bh")


@pytest.mark.parametrize(
  "axes", ["hb", "bb", "bbq", "hh", "kq", "x", "qb", "r"]
)
def test_axes_that_mean_nothing(axes):
  with pytest.raises(ValueError, match=f"axes is '{axes}'; it must be"):
    tiles.Operand(jnp.zeros((2,) * len(axes)), axes)


def test_check_names_what_fits():
  operand = tiles.Operand(jnp.zeros((2, 5, 7)), "bqr")
  operand.check("x", 2, 3, 5, 6)
  with pytest.raises(
    ValueError, match=r"x has shape \(2, 5, 7\); .*\[2, 4, any\]"
  ):
    operand.check("x", 2, 3, 4, 6)
  with pytest.raises(ValueError, match=r"with axes 'b' it must be \[2\]"):
    tiles.Operand(jnp.zeros((2, 1)), "b").check("x", 2, 3, 4, 6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 5), (1, 1, 1, 1)])
def test_squeezed_and_unsqueezed(shape):
  array = jnp.arange(np.prod(shape)).reshape(shape)
  operand = tiles.squeezed(array, "bhqk")
  assert 1 not in operand.array.shape
  np.testing.assert_array_equal(tiles.unsqueezed(operand, "bhqk"), array)


@pytest.mark.parametrize("library", [np, jnp])
def test_values_are_those_of_the_tile(library):
  """Operands of NumPy are as good as those of JAX."""
  rng = np.random.default_rng(0)
  sizes = {"b": 2, "h": 3, "q": 4, "k": 5, "r": 2}
  axes = ["", "b", "hk", "bq", "qk", "bhqr", "hrk"]
  arrays = [rng.standard_normal([sizes[x] for x in a]) for a in axes]
  operands = [
    tiles.Operand(library.asarray(x, np.float32), a)
    for x, a in zip(arrays, axes, strict=True)
  ]

  def function(score, tile, *values):
    assert all(value.ndim == 2 for value in values)
    *plain, row, column = values
    return score + sum(plain) + row @ column + 10 * tile.batch + tile.head

  got = tiles.over_all_scores(
    function, operands, (2, 3, 4, 5), jnp.ones((2, 3, 4, 5))
  )
  scalar, b, hk, bq, qk, bhqr, hrk = arrays
  expected = (
    1
    + scalar
    + b[:, None, None, None]
    + hk[None, :, None]
    + bq[:, None, :, None]
    + qk
    + bhqr @ hrk
    + 10 * np.arange(2)[:, None, None, None]
    + np.arange(3)[:, None, None]
  )
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_operands_are_pytrees():
  operand = tiles.Operand(jnp.arange(3.0), "h")
  doubled = jax.tree.map(lambda x: 2 * x, operand)
  assert doubled.axes == "h"
  np.testing.assert_array_equal(doubled.array, [0, 2, 4])
