"""Flow attention: published values, conservation, causality, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import features, flow


def sine(shape, c):
  n = np.arange(np.prod(shape)) + 1
  return jnp.asarray(np.sin(0.7 * n + c).reshape(shape), jnp.float32)


def heads(x):
  return x.reshape(*x.shape[:2], 2, 2)


Q, K, V = (heads(sine((1, 6, 4), c)) for c in range(3))


@pytest.mark.parametrize(
  ("arrays", "causal", "total", "first", "last"),
  [
    (
      (Q, K, V),
      False,
      0.924083458,
      [0.279440284, 0.0546841292, -0.0249225469, -0.145728056],
      [0.266815426, 0.0467538589, -0.0231819304, -0.128729883],
    ),
    (
      (Q, K, V),
      True,
      -0.516385959,
      [0.31243882, -0.186814972, -0.598206063, -0.728251714],
      [0.25376058, 0.0566479953, -0.0276044617, -0.121620717],
    ),
    (
      (Q, heads(sine((1, 3, 4), 1)), heads(sine((1, 3, 4), 2))),
      False,
      0.225928125,
      None,
      [0.337132415, 0.0416587705, -0.109417385, -0.208014582],
    ),
  ],
)
@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_golden(arrays, causal, total, first, last, implementation):
  attend = functools.partial(
    attention.flow_attention, causal=causal, implementation=implementation
  )
  # Compiled once, instead of each operation by itself.
  out = jax.jit(attend)(*arrays)
  np.testing.assert_allclose(out.sum(), total, rtol=2e-5)
  np.testing.assert_allclose(out[0, 5].ravel(), last, rtol=2e-5)
  if first is not None:
    np.testing.assert_allclose(out[0, 0].ravel(), first, rtol=2e-5)


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


def _random(shape, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("sources", [7, 3])
def test_conservation(sources):
  """What sinks take in is what sources give out, and the other way round."""
  q, k = _random((2, 7, 2, 8), 0, 2.0), _random((2, sources, 2, 8), 1, 2.0)
  flows = flow.flows(q, k)
  np.testing.assert_allclose(flows.sinks.sum(1), sources, rtol=1e-4)
  np.testing.assert_allclose(flows.sources.sum(1), 7, rtol=1e-4)
  # Of as many sources as sinks a clip of 1 acts on some, of fewer on all.
  clipped = np.asarray(flows.sources > 1).mean()
  assert 0.2 < clipped < 0.8 if sources == 7 else clipped == 1


# What the released code of each benchmark has.
PHIS = {"sigmoid": lambda x: 1 / (1 + np.exp(-x))}
PHIS["relu_epsilon"] = lambda x: np.maximum(x, 0) + 1e-6
DEVIATIONS = [
  {"clip": 1.0, "outer_epsilon": 1e-2},
  {
    "clip": None,
    "feature_map": features.relu_epsilon,
    "competition": "heads",
  },
  {"clip": None, "allocation": False},
  {"competition": "none"},
]


@pytest.mark.parametrize("options", DEVIATIONS)
def test_deviations_of_the_released_code(options):
  """Against the sheet's formulas in float64, and their gradient."""
  q, k, v = (_random((2, n, 3, 4), n) for n in (6, 5, 5))
  k = jnp.concatenate([k[:, :4], 3 * k[:, 4:]], axis=1)
  run = functools.partial(flow.flow_attention, **options)
  out = jax.jit(run)(q, k, v)
  np.testing.assert_allclose(
    out, _in_float64(q, k, v, **options), rtol=2e-5, atol=1e-6
  )
  direction = _random(q.shape, 9)
  loss = lambda x: (jax.jit(run)(x, k, v) * direction).sum()
  step = 1e-3 * direction
  slope = _in_float64(q + step, k, v, **options) - _in_float64(
    q - step, k, v, **options
  )
  slope = (slope * np.asarray(direction, np.float64)).sum() / 2e-3
  gradient = (jax.grad(loss)(q) * direction).sum()
  np.testing.assert_allclose(gradient, slope, rtol=2e-2, atol=1e-4)


def _in_float64(
  q,
  k,
  v,
  clip=1.0,
  outer_epsilon=0.0,
  feature_map=features.sigmoid,
  competition="sources",
  allocation=True,
  e=1e-6,
):
  q, k, v = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v))
  q, k = (PHIS[feature_map.__name__](x) for x in (q, k))

  def flow_of(x, terms):
    total = terms.sum(2, keepdims=True) + e
    return ((x + e) * total).sum(-1) + outer_epsilon

  incoming, outgoing = 1 / flow_of(q, k), 1 / flow_of(k, q)
  a = flow_of(q, k * outgoing[..., None])
  b = flow_of(k, q * incoming[..., None])
  b = b if clip is None else np.clip(b, -clip, clip)
  axis = {"sources": 2, "heads": 1}.get(competition)
  c = np.ones_like(b)
  if axis is not None:
    c = np.exp(b) / np.exp(b).sum(axis, keepdims=True) * k.shape[2]
  out = (q @ k.swapaxes(2, 3)) @ (v * c[..., None]) * incoming[..., None]
  if allocation:
    out /= 1 + np.exp(-a * q.shape[2] / k.shape[2])[..., None]
  return out.swapaxes(1, 2)


def test_chunks_equal_cumulative_sums():
  """More positions than a chunk, and a state in the middle of one."""
  q, k, v = (_random((1, 150, 1, 4), seed, 2.0) for seed in range(3))
  run = jax.jit(
    functools.partial(attention.flow_attention, causal=True, return_state=True)
  )
  out, last = run(q, k, v)
  expected = _causal_in_float64(q, k, v, 1.0, PHIS["sigmoid"])
  np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)
  first, state = run(*(x[:, :90] for x in (q, k, v)))
  second, state = run(*(x[:, 90:] for x in (q, k, v)), state=state)
  both = jnp.concatenate([first, second], axis=1)
  np.testing.assert_allclose(both, expected, rtol=0, atol=1e-5)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4), state, last
  )


def test_sequences_of_a_row_are_as_if_alone():
  q, k, v, bar = (_random((1, 9, 2, 4), seed) for seed in range(4))
  kept = jnp.arange(9)[None] >= 2
  begins = jnp.arange(9)[None] == 6

  @jax.jit
  def run(arrays, bar, **options):
    def attend(arrays):
      return attention.flow_attention(*arrays, causal=True, **options)

    out, pull = jax.vjp(attend, arrays)
    return out, *pull(bar)[0]

  spoilt = [jnp.where(kept[..., None, None], x, jnp.nan) for x in (q, k, v)]
  packed = run(spoilt, bar, kept=kept, begins=begins)
  for start, end in ((2, 6), (6, 9)):
    part = slice(start, end)
    alone = run([x[:, part] for x in (q, k, v)], bar[:, part])
    for got, expected in zip(packed, alone, strict=True):
      np.testing.assert_allclose(got[:, part], expected, rtol=1e-4, atol=1e-6)
  for got in packed:
    assert not got[:, :2].any()


def test_half_precision_is_that_of_its_inputs():
  q, k, v = (_random((1, 33, 2, 8), seed) for seed in range(3))
  half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
  for causal in (False, True):
    run = jax.jit(functools.partial(attention.flow_attention, causal=causal))
    out = run(*half)
    assert out.dtype == jnp.bfloat16
    expected = run(*(x.astype(jnp.float32) for x in half))
    np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))


def test_errors_say_what_would_fit():
  wide = jnp.ones((1, 3, 2, 4))
  bad = {
    "competition is 'head'; it must be one of sources": {"competition": "head"},
    "has no causal form": {"competition": "heads", "causal": True},
    "outer_epsilon is -1": {"outer_epsilon": -1.0},
    "causal is False; begins": {"return_state": True},
    "kept is given beside lengths": {
      "kept": jnp.ones((1, 3), bool),
      "q_lengths": jnp.array([2]),
    },
  }
  for message, options in bad.items():
    with pytest.raises(ValueError, match=message):
      attention.flow_attention(wide, wide, wide, **options)
