"""Feature maps: values, inner products, gradients where they could break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import features


def test_taylor_golden():
  x = jnp.asarray(np.sin(0.7 * np.arange(1, 4)), jnp.float32)
  phi = features.taylor(x)
  assert phi.shape == (13,)
  expected = [
    1,
    0.489499588,
    0.748779871,
    0.655897281,
    0.169429747,
    0.259174037,
  ]
  np.testing.assert_allclose(phi[:6], expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("phi", "size"), [(features.taylor, 273), (features.taylor_compact, 153)]
)
def test_taylor_products(phi, size):
  q, k = jax.random.normal(jax.random.key(0), (2, 5, 16))
  assert phi(q).shape == (5, size)
  s = (q * k).sum(-1) / 4
  np.testing.assert_allclose(
    (phi(q) * phi(k)).sum(-1), 1 + s + s**2 / 2, rtol=1e-5
  )


def test_elu_plus_one_far_from_zero():
  x = jnp.array([-200.0, -1.0, 0.0, 1.0, 200.0])
  np.testing.assert_allclose(
    features.elu_plus_one(x), [0.0, np.exp(-1), 1, 2, 201], rtol=1e-6
  )
  slope = jax.vmap(jax.grad(features.elu_plus_one))(x)
  assert jnp.isfinite(slope).all()
  np.testing.assert_allclose(slope[-1], 1.0)


def test_simple_maps():
  x = jax.random.normal(jax.random.key(1), (3, 4))
  np.testing.assert_allclose(
    features.relu_epsilon(x), np.maximum(x, 0) + np.float32(1e-6), rtol=1e-6
  )
  np.testing.assert_allclose(features.sigmoid(x), 1 / (1 + np.exp(-x)), 1e-5)
  np.testing.assert_allclose(features.softmax(x), jax.nn.softmax(x), rtol=1e-5)
  np.testing.assert_array_equal(features.identity(x), x)
