"""Rounding to four bits against NumPy's and ml_dtypes' own numbers."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from interpret import quantization
from models import layers
from models.transformer import stack_layers
from tests.models import language

rng = np.random.default_rng(0)


def _int4(x, axis):
  scale = np.abs(x).max(axis, keepdims=True) / 7
  return np.round(x / np.where(scale > 0, scale, 1)) * scale


def _nvfp4(x, axis):
  """Block by block, of rows along one axis."""
  x = np.moveaxis(np.array(x, np.float32), axis, -1)
  for row in np.ndindex(x.shape[:-1]):
    whole = np.abs(x[row]).max() / np.float32(6 * 448) or np.float32(1)
    for start in range(0, x.shape[-1], 16):
      block = x[row][start : start + 16]
      scale = (np.abs(block).max() / np.float32(6) / whole).astype(
        ml_dtypes.float8_e4m3fn
      )
      scale = scale.astype(np.float32) * whole
      if scale:
        values = np.clip(block / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn)
        block = values.astype(np.float32) * scale
      x[row][start : start + 16] = block
  return np.moveaxis(x, -1, axis)


ORACLES = {"int4": _int4, "nvfp4": _nvfp4}


def _draw(*shape):
  """Numbers of many sizes, a row of zeros, and no multiple of 16."""
  x = rng.standard_normal(shape) * np.exp(2 * rng.standard_normal(shape))
  x[0] = 0
  return x.astype(np.float32)


@pytest.mark.parametrize("scheme", ORACLES)
@pytest.mark.parametrize(("shape", "axis"), [((5, 37), -1), ((21, 4), 0)])
def test_numbers(scheme, shape, axis):
  x = _draw(*shape)
  rounded = functools.partial(quantization.SCHEMES[scheme], axes=(axis,))
  out = jax.jit(rounded)(x)
  np.testing.assert_allclose(out, ORACLES[scheme](x, axis), rtol=1e-6)
  assert np.abs(out - x).max() > 0.01
  short = rounded(jnp.asarray(x, jnp.bfloat16))
  assert short.dtype == jnp.bfloat16


@pytest.mark.parametrize("scheme", ORACLES)
def test_several_axes_are_one(scheme):
  x = _draw(3, 4, 5)
  rounded = quantization.SCHEMES[scheme](x, (0, 1))
  expected = ORACLES[scheme](x.reshape(12, 5), 0).reshape(x.shape)
  np.testing.assert_allclose(rounded, expected, rtol=1e-6)


def test_what_four_bits_hold_is_left():
  x = np.array([[7.0, -3.0, 0.0, 1.0], [14.0, -14.0, 2.0, 6.0]], np.float32)
  np.testing.assert_array_equal(quantization.int4(x, (1,)), x)
  x = np.array([[6.0, -4.0, 3.0, 1.5, 0.5, 0.0]], np.float32)
  np.testing.assert_allclose(quantization.nvfp4(x, (1,)), x, rtol=1e-6)


@pytest.mark.parametrize("scheme", ORACLES)
def test_dense_layers(scheme):
  oracle = ORACLES[scheme]
  x, bias = _draw(3, 5, 2, 9), _draw(6)
  into, out = _draw(9, 6), _draw(2, 9, 6)
  cases = [
    (layers.Dense(6), into, oracle(x, -1) @ oracle(into, 0)),
    (
      layers.DenseGeneral(6, axis=(-2, -1)),
      out,
      oracle(x.reshape(3, 5, 18), -1) @ oracle(out.reshape(18, 6), 0),
    ),
  ]
  for layer, kernel, expected in cases:
    variables = {"params": {"kernel": kernel, "bias": bias}}

    def run(variables, x, layer=layer):
      return layer.apply(variables, x)

    with quantization.w4a4(scheme):
      rounded = jax.jit(run)(variables, x)
    expected = expected + bias
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(rounded, expected, atol=tolerance)
    exact = run(variables, x)
    assert np.abs(exact - rounded).max() > 1e3 * tolerance


@pytest.mark.parametrize("scheme", ORACLES)
def test_an_outlier_costs_its_neighbours(scheme):
  x = rng.standard_normal((8, 64)).astype(np.float32)
  kernel = rng.standard_normal((64, 5)).astype(np.float32)
  # What the outlier says is heard by nobody.
  kernel[3] = 0
  layer = layers.Dense(5, use_bias=False)

  def error(x):
    exact = layer.apply({"params": {"kernel": kernel}}, x)
    with quantization.w4a4(scheme):
      rounded = layer.apply({"params": {"kernel": kernel}}, x)
    return float(jnp.square(exact - rounded).mean() / jnp.square(exact).mean())

  plain = error(x)
  x[:, 3] = 1000
  assert plain < 0.05 < 5 * plain < error(x)


def test_a_transformer_layer_by_layer_and_in_a_scan():
  model = language.model(depth=2, norm="gated_rms_norm")
  variables, tokens = language.variables(model), language.tokens()
  scanned = model.clone(scan_layers=True)
  stacked = {"params": stack_layers(variables["params"], 1)}
  exact = model.apply(variables, tokens)
  with quantization.w4a4():
    rounded = jax.jit(model.apply)(variables, tokens)
    again = jax.jit(scanned.apply)(stacked, tokens)
  # A last digit may decide which way a number is rounded.
  assert float(jnp.abs(again - rounded).mean()) < 1e-3
  assert 1e-2 < float(jnp.abs(exact - rounded).mean()) < 1
  np.testing.assert_array_equal(model.apply(variables, tokens), exact)


def test_a_scheme_that_is_not_known():
  with pytest.raises(
    ValueError, match="quantisation 'int5'; did you mean int4"
  ):
    quantization.w4a4("int5")
