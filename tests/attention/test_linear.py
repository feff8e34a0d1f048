"""Linear attention against explicit weights, published values and itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import features


def sine(shape, c, s=1.0):
  """The arrays of the fact sheets' golden values."""
  n = np.arange(np.prod(shape)) + 1
  return jnp.asarray((s * np.sin(0.7 * n + c)).reshape(shape), jnp.float32)


def randoms(seed, *shapes):
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return [jax.random.normal(*x) for x in zip(keys, shapes, strict=True)]


def heads_first(x):
  return x.transpose(0, 2, 1, 3)


LINA = [heads_first(sine((1, 2, 5, 4), c)) for c in range(3)]
GATES = [
  1 + sine((1, 2, 5, 1), c, 0.1).transpose(0, 2, 1, 3)[..., 0] for c in (3, 4)
]


@pytest.mark.parametrize(
  ("options", "total", "first"),
  [
    (
      {},
      5.510243,
      [0.786648748, 0.426243391, -0.134630893, -0.632186165],
    ),
    (
      {"key_gate": GATES[0], "value_gate": GATES[1]},
      6.73064252,
      [0.81308875, 0.477435511, -0.0827631084, -0.604036945],
    ),
  ],
)
def test_lina(options, total, first):
  out = attention.linear_attention(*LINA, **options)
  np.testing.assert_allclose(out.sum(), total, rtol=1e-5)
  np.testing.assert_allclose(out[0, 0, 0], first, rtol=1e-5)


def test_inline():
  out = attention.linear_attention(
    *LINA, feature_map=features.relu, normalizer="subtraction"
  )
  np.testing.assert_allclose(out.sum(), -0.552840989, rtol=1e-5)
  np.testing.assert_allclose(
    out[0, 0, 0],
    [0.498478248, 0.265675074, -0.0920792385, -0.406527246],
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  "feature_map", [features.taylor, features.taylor_compact]
)
def test_based(feature_map):
  shapes = (1, 1, 5, 3), (1, 1, 5, 3), (1, 1, 5, 2)
  q, k, v = (heads_first(sine(x, c)) for c, x in enumerate(shapes))
  out = attention.linear_attention(
    q,
    k,
    v,
    feature_map=feature_map,
    epsilon=1e-12,
    epsilon_per_key=False,
    causal=True,
    chunk_size=2,
  )
  rows = [
    [0.42737988, -0.255541102],
    [-0.340269785, -0.711958391],
    [-0.602086744, -0.603756184],
    [0.0887637202, 0.129395643],
    [0.124029928, -0.0504948227],
  ]
  np.testing.assert_allclose(out[0, :, 0], rows, rtol=2e-5, atol=1e-6)


def test_linfusion():
  x = sine((1, 6, 4), 0)
  wq, wk, wv, wo = (sine((4, 4), c, 0.5) for c in range(1, 5))
  q = (x + sine((1, 6, 4), 6, 0.2)) @ wq.T
  k = (x + sine((1, 6, 4), 7, 0.2)) @ wk.T
  out = attention.linear_attention(
    *(y.reshape(1, 6, 2, 2) for y in (q, k, x @ wv.T)),
    feature_map=features.elu_plus_one,
    epsilon=1e-4,
  )
  y = out.reshape(1, 6, 4) @ wo.T + sine((4,), 5, 0.1)[None, None]
  np.testing.assert_allclose(y.sum(), 0.607733815, rtol=1e-5)
  np.testing.assert_allclose(
    y[0, 0],
    [-0.12094913, 0.0337414154, 0.0971567024, 0.0320515916],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    y[0, 5],
    [-0.0988339068, 0.0162503903, 0.108002348, 0.0291045976],
    rtol=1e-5,
  )


def explicit(
  q, k, v, key_gate, value_gate, decay, *, phi, normalizer, causal, lengths
):
  """The N x N formula, for any of the options."""
  heads = q.shape[2]
  k, v = (jnp.repeat(x, heads // x.shape[2], 2) for x in (k, v))
  v = v * value_gate[..., None]
  phi_q, phi_k = phi(q), phi(k) * key_gate[..., None]
  seen = jnp.ones((q.shape[1], k.shape[1]), bool)
  if causal:
    seen = jnp.tril(seen)
  real = jnp.arange(k.shape[1])[None] < lengths[:, None]
  seen = seen[None, :, :, None] & real[:, None, :, None]
  if decay.ndim == 3:
    decay = decay[..., None]
  total = jnp.cumsum(decay, 1)
  between = jnp.exp(jnp.minimum(total[:, :, None] - total[:, None], 0.0))
  if not causal:
    between = jnp.ones_like(between)
  w = (phi_q[:, :, None] * phi_k[:, None] * between).sum(-1) * seen
  n = jnp.maximum(seen.sum(2), 1).astype(jnp.float32)[..., None]
  mixed = jnp.einsum("bijh,bjhv->bihv", w, v)
  weight = w.sum(2)[..., None]
  if normalizer == "none":
    return mixed
  if normalizer == "division":
    return mixed / (weight + n * 1e-6)
  s = q.shape[-1] ** -0.5
  mean = (seen[..., None] * v[:, None]).sum(2) / n
  return mixed * s / n + (1 - weight * s / n) * mean


@pytest.mark.parametrize(
  ("normalizer", "causal", "decay_rank"),
  [
    ("division", False, 0),
    ("subtraction", False, 0),
    ("subtraction", True, 0),
    ("division", True, 3),
    ("none", True, 4),
  ],
)
def test_equals_explicit_weights(normalizer, causal, decay_rank):
  shapes = (2, 7, 4, 5), (2, 7, 2, 5), (2, 7, 1, 3), (2, 7, 4), (1, 7, 4)
  q, k, v, key_gate, value_gate = randoms(0, *shapes)
  key_gate = 1 + 0.2 * key_gate
  (decay,) = randoms(1, (2, 7, 4, 5)[: decay_rank or 3])
  decay = -jnp.abs(decay) * (decay_rank > 0)
  lengths = jnp.array([7, 4])
  phi = features.relu_epsilon
  arrays = (q, k, v, key_gate, value_gate, decay)

  def ours(q, k, v, key_gate, value_gate, decay):
    return attention.linear_attention(
      q,
      k,
      v,
      feature_map=phi,
      normalizer=normalizer,
      causal=causal,
      key_gate=key_gate,
      value_gate=value_gate,
      decay=decay if decay_rank else None,
      lengths=lengths,
      chunk_size=3,
    )

  options = {"phi": phi, "normalizer": normalizer, "causal": causal}
  right = functools.partial(explicit, lengths=lengths, **options)
  weight = randoms(2, (2, 7, 4, 3))[0]

  def both(f):
    return jax.jit(
      jax.value_and_grad(
        lambda *x: (lambda y: ((y * weight).sum(), y))(f(*x)),
        argnums=tuple(range(6)),
        has_aux=True,
      )
    )(*arrays)

  ((_, out), bars), ((_, expected), expected_bars) = both(ours), both(right)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
  names = ["q", "k", "v", "key_gate", "value_gate"]
  if decay_rank:
    names.append("decay")
  for name, bar, expected in zip(names, bars, expected_bars, strict=False):
    np.testing.assert_allclose(
      bar, expected, rtol=2e-3, atol=2e-4, err_msg=name
    )


@pytest.mark.parametrize("decayed", [True, False])
def test_decoding_continues_the_parallel_form(decayed):
  q, k, v, decay = randoms(3, (2, 6, 2, 4), (2, 6, 2, 4), (2, 6, 2, 3), (2,))
  options = {"causal": True, "decay": -jnp.abs(decay) if decayed else None}
  whole, last = attention.linear_attention(
    q, k, v, return_state=True, chunk_size=4, **options
  )
  _, state = attention.linear_attention(
    q[:, :2], k[:, :2], v[:, :2], return_state=True, **options
  )
  for i in range(2, 6):
    out, state = attention.linear_attention(
      *(x[:, i : i + 1] for x in (q, k, v)),
      state=state,
      return_state=True,
      **options,
    )
    np.testing.assert_allclose(out[:, 0], whole[:, i], rtol=1e-4, atol=1e-5)
  for a, b in zip(state, last, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_strong_decay_is_finite():
  q, k, v = randoms(4, *[(1, 64, 1, 4)] * 3)
  decay = jnp.full((1, 64, 1, 4), -80.0)
  grad = jax.grad(
    lambda d: attention.linear_attention(q, k, v, causal=True, decay=d).sum()
  )(decay)
  assert jnp.isfinite(grad).all()


def test_padding_may_hold_anything():
  q, k, v = randoms(5, *[(1, 6, 2, 4)] * 3)
  out = attention.linear_attention(q, k[:, :4], v[:, :4])
  k, v = (x.at[:, 4:].set(jnp.nan) for x in (k, v))
  padded = attention.linear_attention(q, k, v, lengths=jnp.array([4]))
  np.testing.assert_allclose(padded, out, rtol=1e-5)


def test_gates_of_one_change_nothing_and_bfloat16_is_near():
  q, k, v = randoms(6, *[(1, 6, 2, 4)] * 3)
  ones = jnp.ones((1, 6, 1))
  out = attention.linear_attention(q, k, v)
  gated = attention.linear_attention(q, k, v, key_gate=ones, value_gate=ones)
  np.testing.assert_array_equal(gated, out)
  half = attention.linear_attention(
    *(x.astype(jnp.bfloat16) for x in (q, k, v))
  )
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), out, atol=0.05)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"normalizer": "softmax"}, "normalizer is 'softmax'"),
    ({"decay": jnp.zeros(2)}, "decay needs causal"),
    ({"chunk_size": 0}, "chunk_size is 0"),
    ({"causal": True, "decay": jnp.zeros(3)}, "decay has shape"),
    ({"implementation": "pallas"}, "no kernel for the platform"),
  ],
)
def test_errors(options, message):
  x = jnp.ones((1, 4, 2, 4))
  with pytest.raises(ValueError, match=message):
    attention.linear_attention(x, x, x, **options)
