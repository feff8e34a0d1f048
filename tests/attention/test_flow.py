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


@pytest.mark.parametrize("clip", [None, 1.0])
def test_causal_does_not_look_ahead(clip):
  """However large what comes is: the past has weights of its own."""
  arrays = np.random.default_rng(3).standard_normal((3, 1, 6, 1, 4))
  # The flows of the last keys are some 200 beyond the others.
  arrays[1, :, 4:] += 3.0
  q, k, v = jnp.asarray(arrays, jnp.float32)
  run = jax.jit(
    lambda q, k, v: attention.flow_attention(
      q, k, v, causal=True, clip=clip, feature_map=lambda x: jnp.exp(2 * x)
    )
  )
  whole, first = run(q, k, v), run(*(x[:, :4] for x in (q, k, v)))
  assert np.abs(first).max() > 0.1
  np.testing.assert_allclose(whole[:, :4], first, rtol=1e-4, atol=1e-5)
  expected = _causal_in_float64(q, k, v, clip, lambda x: np.exp(2 * x))
  np.testing.assert_allclose(whole, expected, rtol=1e-3, atol=1e-4)


def _causal_in_float64(q, k, v, clip, phi, e=1e-6):
  """The formula of the docstring for one head, position by position."""
  q, k, v = (np.asarray(x, np.float64)[0, :, 0] for x in (q, k, v))
  q, k, n = phi(q), phi(k), len(q)
  out, incoming, outgoing, b = (np.zeros(n) for _ in range(4))
  for t in range(n):
    incoming[t] = (t + 1) / np.dot(q[t] + e, k[: t + 1].sum(0) + e)
    outgoing[t] = (t + 1) / np.dot(k[t] + e, q[: t + 1].sum(0) + e)
  competition, out = np.zeros(n), np.zeros(v.shape)
  for t in range(n):
    seen = slice(t + 1)
    flows = (k[seen] * outgoing[seen, None]).sum(0) + e
    a = np.dot(q[t] + e, flows) / (t + 1)
    flows = (q[seen] * incoming[seen, None]).sum(0) + e
    b[t] = np.dot(k[t] + e, flows) / (t + 1)
    if clip is not None:
      b[t] = np.clip(b[t], -clip, clip)
    # Of the softmax over positions up to t, the weight of t itself.
    competition[t] = (t + 1) / np.exp(b[seen] - b[t]).sum()
    weights = k[seen] @ q[t]
    mixed = weights @ (v[seen] * competition[seen, None])
    out[t] = mixed * incoming[t] / (t + 1) / (1 + np.exp(-a))
  return out[None, :, None]


@pytest.mark.parametrize("causal", [False, True])
def test_padding_acts_on_nothing(causal):
  """Whatever it holds; a sequence of nothing but padding gives zeros."""
  keys = jax.random.split(jax.random.key(2), 4)
  q, k, v, bar = (jax.random.normal(key, (3, 6, 2, 4)) for key in keys)
  lengths = jnp.array([0, 4, 6])
  padding = (jnp.arange(6)[None] >= lengths[:, None])[..., None, None]

  @jax.jit
  def run(arrays, bar, lengths):
    def attend(arrays):
      return attention.flow_attention(
        *arrays, causal=causal, q_lengths=lengths, kv_lengths=lengths
      )

    out, pull = jax.vjp(attend, arrays)
    return out, *pull(bar)[0]

  spoilt = [jnp.where(padding, jnp.nan, x) for x in (q, k, v)]
  padded = run(spoilt, bar, lengths)
  short = run([x[1:2, :4] for x in (q, k, v)], bar[1:2, :4], lengths[1:2])
  for got, expected in zip(padded, short, strict=True):
    assert jnp.isfinite(got).all()
    assert not jnp.where(padding, got, 0.0).any()
    np.testing.assert_allclose(got[1:2, :4], expected, rtol=1e-4, atol=1e-6)
    assert got[2].any()


@pytest.mark.parametrize("causal", [False, True])
def test_no_keys(causal):
  none = jnp.ones((1, 0, 2, 4))
  q = none if causal else jnp.ones((1, 3, 2, 4))

  @jax.jit
  def run(q):
    attend = lambda q: attention.flow_attention(q, none, none, causal=causal)
    out, pull = jax.vjp(attend, q)
    return out, pull(out)[0]

  out, gradient = run(q)
  assert out.shape == q.shape
  assert not out.any()
  assert not gradient.any()
