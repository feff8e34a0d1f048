"""Vectors that move with time: closed forms, gradients, extreme values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.time_norms import TimeLayerNorm, TimeRMSNorm, TimeVector
from tests import parity_helper

TAU = np.float32([-1, -0.3, 0, 0.6, 1])
NAMES = ("noisy", "clean", "slope", "offset")


def vectors(size=7, seed=0):
  rng = np.random.default_rng(seed)
  return {n: rng.standard_normal(size).astype(np.float32) for n in NAMES}


def parts(params):
  """What the sheet calls p0, p1, s."""
  p0, p1, w, b = (np.float64(params[name]) for name in NAMES)
  return p0, p1, 1 / (1 + np.exp(-((1 + w) * TAU[:, None] + b)))


def test_a_vector_and_its_gradients_by_their_formulas():
  params = vectors()
  g = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)

  def weighed(params, tau):
    out = TimeVector(7).apply({"params": params}, tau)
    return (out * g).sum(), out

  (_, out), grads = jax.value_and_grad(weighed, has_aux=True)(params, TAU)
  p0, p1, s = parts(params)
  np.testing.assert_allclose(out, s * p0 + (1 - s) * p1, rtol=1e-5, atol=1e-6)
  g_a = (p0 - p1) * s * (1 - s) * g
  expected = {
    "noisy": (s * g).sum(0),
    "clean": ((1 - s) * g).sum(0),
    "slope": (g_a * TAU[:, None]).sum(0),
    "offset": g_a.sum(0),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(grads[name], value, rtol=1e-4, atol=1e-5)


def test_a_new_vector_does_not_know_the_time():
  variables = TimeVector(3).init(jax.random.key(0), TAU)
  assert set(variables["params"]) == set(NAMES)

  def total(variables):
    out = TimeVector(3).apply(variables, TAU)
    return out.sum(), out

  grads, out = jax.grad(total, has_aux=True)(variables)
  np.testing.assert_array_equal(out, 1)
  np.testing.assert_array_equal(grads["params"]["slope"], 0)
  np.testing.assert_array_equal(grads["params"]["offset"], 0)
  assert (grads["params"]["noisy"] != 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 7), (5, 2, 3, 7)])
def test_norms_by_their_formulas(shape, dtype):
  x = np.random.default_rng(2).standard_normal(shape).astype(dtype)
  exact = np.float64(x)
  rows = lambda vector: vector.reshape(5, *(1,) * (len(shape) - 2), 7)
  scale, bias = vectors(), vectors(seed=1)
  timed = []
  for params in (scale, bias):
    p0, p1, s = parts(params)
    timed.append(rows(s * p0 + (1 - s) * p1))
  mean = exact.mean(-1, keepdims=True)
  deviation = np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
  root = np.linalg.norm(exact, axis=-1, keepdims=True) / np.sqrt(7)
  tolerance = {"rtol": 1e-4, "atol": 1e-5}
  if dtype == "bfloat16":
    tolerance = {"rtol": 1e-2, "atol": 1e-6}
  for norm, params, expected in (
    (
      TimeLayerNorm(dtype=dtype),
      {"scale": scale, "bias": bias},
      (exact - mean) / deviation * timed[0] + timed[1],
    ),
    (
      TimeRMSNorm(dtype=dtype),
      {"scale": scale},
      exact / (root + 1e-8) * timed[0],
    ),
  ):
    out = norm.apply({"params": params}, x, TAU)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.float64(out), expected, **tolerance)


def test_epsilons():
  """That of the RMS is beside the root: tiny vectors are what it shrinks."""
  x = np.full((5, 4), 1e-8, np.float32)
  variables = {"params": {"scale": vectors(4)}}
  one = TimeRMSNorm().apply(variables, 1e3 * x, TAU)
  tiny = TimeRMSNorm().apply(variables, x, TAU)
  np.testing.assert_allclose(tiny / one, 0.5, rtol=2e-3)


def test_zeros_have_gradients():
  x = jnp.zeros((5, 4))
  for norm in (TimeRMSNorm(), TimeLayerNorm()):
    shapes = jax.eval_shape(lambda n=norm: n.init(jax.random.key(0), x, TAU))
    variables = parity_helper.randomise(shapes, 0)
    total = lambda v, x, n=norm: n.apply(v, x, TAU).sum()
    grads = jax.grad(total, argnums=(0, 1))(variables, x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
