"""The CPU's sum of products against XLA's convolution, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models.depthwise import depthwise_convolution

CASES = [
  (size, kernel, stride)
  for size in ((5, 5), (6, 6), (7, 4), (1, 3))
  for kernel in (3, 5)
  for stride in (1, 2)
]


def _reference(x, kernel, stride):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def _inputs(size, kernel, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (2, *size, 3), dtype)
  return x, jax.random.normal(keys[1], (kernel, kernel, 1, 3), dtype)


@pytest.mark.parametrize(("size", "kernel", "stride"), CASES)
def test_values_and_gradients(size, kernel, stride):
  x, filters = _inputs(size, kernel)
  out, vjp = jax.vjp(lambda *a: depthwise_convolution(*a, stride), x, filters)
  expected, expected_vjp = jax.vjp(
    lambda *a: _reference(*a, stride), x, filters
  )
  np.testing.assert_allclose(out, expected, atol=1e-5)
  g = jax.random.normal(jax.random.key(1), out.shape)
  for value, wanted in zip(vjp(g), expected_vjp(g), strict=True):
    np.testing.assert_allclose(value, wanted, atol=2e-5)


def test_bfloat16_is_summed_in_float32():
  x, filters = _inputs((7, 9), 3, jnp.bfloat16)
  exact = [a.astype(jnp.float32) for a in (x, filters)]
  out, vjp = jax.vjp(lambda *a: depthwise_convolution(*a, 2), x, filters)
  expected, expected_vjp = jax.vjp(lambda *a: _reference(*a, 2), *exact)
  assert out.dtype == jnp.bfloat16
  # One rounding to 8 bits of what was summed exactly.
  np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))
  gradients = vjp(out)
  wanted = expected_vjp(out.astype(jnp.float32))
  for value, exact_value in zip(gradients, wanted, strict=True):
    assert value.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      value.astype(jnp.float32), exact_value, rtol=8e-3, atol=1e-5
    )


def test_bad_kernel():
  x, filters = _inputs((5, 5), 3)
  with pytest.raises(ValueError, match=r"kernel has shape .*width, 1, 3\]"):
    depthwise_convolution(x, filters[..., :2], 1)
