"""Flow attention: published values, conservation, causality, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention


def sine(shape, c):
  n = np.arange(np.prod(shape)) + 1
  return jnp.asarray(np.sin(0.7 * n + c).reshape(shape), jnp.float32)


def heads(x):
  return x.reshape(*x.shape[:2], 2, 2)


Q, K, V = (heads(sine((1, 6, 4), c)) for c in range(3))


@pytest.mark.parametrize(
  ("arrays", "causal", "total", "last"),
  [
    (
      (Q, K, V),
      False,
      0.924083458,
      [0.266815426, 0.0467538589, -0.0231819304, -0.128729883],
    ),
    (
      (Q, K, V),
      True,
      -0.516385959,
      [0.25376058, 0.0566479953, -0.0276044617, -0.121620717],
    ),
    (
      (Q, heads(sine((1, 3, 4), 1)), heads(sine((1, 3, 4), 2))),
      False,
      0.225928125,
      [0.337132415, 0.0416587705, -0.109417385, -0.208014582],
    ),
  ],
)
@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_golden(arrays, causal, total, last, implementation):
  attend = functools.partial(
    attention.flow_attention, causal=causal, implementation=implementation
  )
  # Compiled once, instead of each operation by itself.
  out = jax.jit(attend)(*arrays)
  np.testing.assert_allclose(out.sum(), total, rtol=2e-5)
  np.testing.assert_allclose(out[0, 5].ravel(), last, rtol=2e-5)


def test_causal_by_gradient():
  def at(t):
    return lambda q, k, v: attention.flow_attention(q, k, v, causal=True)[
      0, t
    ].sum()

  for bar in jax.jit(jax.grad(at(2), (0, 1, 2)))(Q, K, V):
    assert (bar[:, 3:] == 0).all()
    assert (bar[:, :3] != 0).any()


def test_padding_changes_nothing():
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, (1, 6, 2, 4)) for key in keys)
  four = jnp.array([4])
  out = attention.flow_attention(
    q, k, v, q_lengths=four, kv_lengths=four, clip=None
  )
  short = attention.flow_attention(*(x[:, :4] for x in (q, k, v)), clip=None)
  np.testing.assert_allclose(out[:, :4], short, rtol=1e-5, atol=1e-6)
