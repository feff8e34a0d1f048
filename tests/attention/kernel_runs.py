"""Runs a kernel or its reference with all gradients, and compares the two."""

import jax
import jax.numpy as jnp
import numpy as np


def with_gradients(function):
  """Returns a compiled function of arrays by name and a cotangent.

  It returns what `function(**arrays)` does as "out", and the gradient to each
  array under its name: one program for the forward and the backward pass.
  """

  @jax.jit
  def run(arrays, out_bar):
    out, pull = jax.vjp(lambda arrays: function(**arrays), arrays)
    return {"out": out, **pull(out_bar.astype(out.dtype))[0]}

  return run


def in_float32(arrays):
  """Returns the arrays in the dtype of the reference, the same numbers."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), arrays)


def assert_close(actual, expected, tolerance):
  """Compares two trees array by array.

  Args:
    actual: of a kernel.
    expected: of the reference, in float32.
    tolerance: length of the largest difference for an array of length one.
  """
  pairs = zip(
    jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
  )
  for (path, have), want in pairs:
    name = jax.tree_util.keystr(path)
    assert have.shape == want.shape, name
    if have.dtype == jax.dtypes.float0:
      continue
    have, want = (np.asarray(x, np.float32) for x in (have, want))
    assert want.any(), name
    error = np.linalg.norm(have - want) / np.linalg.norm(want)
    assert error < tolerance, f"{name}: {error}"


def assert_same_bits(first, again):
  for (path, x), y in zip(
    jax.tree.leaves_with_path(first), jax.tree.leaves(again), strict=True
  ):
    np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
