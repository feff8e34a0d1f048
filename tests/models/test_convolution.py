"""A photograph's convolution against XLA's, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models import convolution
from tools import work

OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def _inputs(channels, dtype):
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (2, 9, 7, channels), dtype)
  return x, jax.random.normal(keys[1], (3, 3, channels, 5), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ("channels", "stride", "padding"),
  [(3, 2, [(1, 1), (1, 1)]), (3, 1, "SAME"), (1, 2, "SAME"), (4, 1, "VALID")],
)
def test_values_and_gradients(channels, stride, padding, dtype):
  inputs = _inputs(channels, dtype)
  results = []
  for convolve in (convolution.conv_general_dilated, lax.conv_general_dilated):
    convolve = functools.partial(
      convolve, window_strides=(stride, stride), padding=padding, **OPTIONS
    )
    out, vjp = jax.vjp(jax.jit(convolve), *inputs)
    results.append((out, *vjp(jnp.cos(out))))
  tolerance = 1e-5 if dtype == jnp.float32 else 0.05
  for ours, expected in zip(*results, strict=True):
    assert ours.dtype == expected.dtype == dtype
    np.testing.assert_allclose(
      ours.astype(jnp.float32),
      expected.astype(jnp.float32),
      atol=tolerance * float(jnp.abs(expected).max()),
    )


def test_the_fourth_channel_is_not_counted():
  x, kernel = _inputs(3, jnp.float32)
  convolve = functools.partial(
    convolution.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    **OPTIONS,
  )
  assert work.count_work(convolve, x, kernel).multiply_adds == 2 * 63 * 27 * 5
