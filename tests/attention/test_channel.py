"""Channel attention against loops over heads and channels in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention

# [batch, length, heads, dim]; keys have other channels than queries.
RNG = np.random.default_rng(0)
Q = jnp.asarray(RNG.standard_normal((2, 11, 3, 4)), jnp.float32)
K, V = jnp.asarray(RNG.standard_normal((2, 2, 11, 3, 5)), jnp.float32)
TEMPERATURE = jnp.array([0.5, 3.0, -2.0])


def by_hand(q, k, v, temperature):
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros(q.shape)
  for b, h, c in np.ndindex(q.shape[0], q.shape[2], q.shape[3]):
    query = q[b, :, h, c]
    scores = [
      query @ key / np.linalg.norm(query) / np.linalg.norm(key)
      for key in k[b, :, h].T
    ]
    weights = np.exp(float(temperature[h]) * np.array(scores))
    out[b, :, h, c] = v[b, :, h] @ weights / weights.sum()
  return out


def test_values():
  out = attention.channel_attention(Q, K, V, TEMPERATURE)
  np.testing.assert_allclose(out, by_hand(Q, K, V, TEMPERATURE), atol=2e-6)
  weights = attention.channel_attention_weights(Q, K, TEMPERATURE)
  assert weights.shape == (2, 3, 4, 5)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_bfloat16_has_float32_sums():
  # 4096 places: sums of bfloat16 would have no digit left.
  q, k, v = (
    jnp.asarray(RNG.standard_normal((1, 4096, 1, 3)), jnp.bfloat16)
    for _ in range(3)
  )
  weights = attention.channel_attention_weights(q, k, jnp.full((1,), 9.0))
  assert weights.dtype == jnp.float32
  exact = attention.channel_attention_weights(
    q.astype(jnp.float32), k.astype(jnp.float32), jnp.full((1,), 9.0)
  )
  np.testing.assert_allclose(weights, exact, atol=1e-5)
  out = attention.channel_attention(q, k, v, jnp.ones((1,), jnp.bfloat16))
  assert out.dtype == jnp.bfloat16
  wanted = by_hand(*(x.astype(jnp.float32) for x in (q, k, v)), np.ones(1))
  np.testing.assert_allclose(out.astype(jnp.float32), wanted, atol=0.02)


def test_gradients():
  direction = RNG.standard_normal(Q.shape)

  def loss(*args):
    return (attention.channel_attention(*args) * direction).sum()

  args = (Q, K, V, TEMPERATURE)
  gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(*args)
  args = [np.asarray(x, np.float64) for x in args]
  for i, gradient in enumerate(gradients):
    step = 1e-4 * RNG.standard_normal(args[i].shape)
    ends = [
      (by_hand(*args[:i], args[i] + sign * step, *args[i + 1 :]) * direction)
      for sign in (1, -1)
    ]
    difference = (ends[0].sum() - ends[1].sum()) / 2
    np.testing.assert_allclose((gradient * step).sum(), difference, rtol=1e-3)


def test_channels_of_zeros():
  def total(q):
    return attention.channel_attention(q, K, V, TEMPERATURE).sum()

  q = Q.at[:, :, :, 1].set(0)
  weights = attention.channel_attention_weights(q, K, TEMPERATURE)
  np.testing.assert_allclose(weights[:, :, 1], 1 / 5, rtol=1e-6)
  assert np.isfinite(jax.grad(total)(q)).all()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"k": K[:, :5]}, r"q has shape \(2, 11, 3, 4\) and k \(2, 5, 3, 5\)"),
    ({"v": V[..., :4]}, r"v has shape \(2, 11, 3, 4\) and weights"),
    ({"k": K.astype(jnp.float16)}, "k is float16 and q is float32"),
    ({"q": Q.astype(jnp.int32)}, "q is an array of int32"),
    ({"temperature": TEMPERATURE[:1]}, r"temperature has shape \(1,\).*\(3,\)"),
  ],
)
def test_what_does_not_fit(unchecked, change, message):
  arguments = {"q": Q, "k": K, "v": V, "temperature": TEMPERATURE, **change}
  with pytest.raises(ValueError, match=message):
    attention.channel_attention(**arguments)
