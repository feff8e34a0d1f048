"""Linear attention against explicit weights, published values and itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import features, linear_normalizers


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
    *LINA,
    feature_map=features.relu,
    normalizer=linear_normalizers.subtraction(),
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
    normalizer=linear_normalizers.division(1e-12, per_key=False),
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
    normalizer=linear_normalizers.division(1e-4),
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
  if normalizer == "identity":
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
    ("identity", True, 4),
  ],
)
def test_equals_explicit_weights(normalizer, causal, decay_rank):
  shapes = (2, 7, 4, 5), (2, 7, 2, 5), (2, 7, 1, 3), (2, 7, 4), (1, 7, 4)
  q, k, v, key_gate, value_gate = randoms(0, *shapes)
  key_gate = 1 + 0.2 * key_gate
  (decay,) = randoms(1, (2, 7, 4, 5)[: decay_rank or 3])
  decay = -jnp.abs(decay) * (decay_rank > 0)
  make = getattr(linear_normalizers, normalizer)
  lengths = jnp.array([7, 4])
  phi = features.relu_epsilon
  arrays = (q, k, v, key_gate, value_gate, decay)

  def ours(q, k, v, key_gate, value_gate, decay):
    return attention.linear_attention(
      q,
      k,
      v,
      feature_map=phi,
      normalizer=make(),
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
  if causal:
    # Queries are padding too.
    weight = weight * (jnp.arange(7)[None] < lengths[:, None])[..., None, None]

  def both(f):
    return jax.jit(
      jax.value_and_grad(
        lambda *x: (lambda y: ((y * weight).sum(), y))(f(*x)),
        argnums=tuple(range(6)),
        has_aux=True,
      )
    )(*arrays)

  ((_, out), bars), ((_, expected), expected_bars) = both(ours), both(right)
  out, expected = (jnp.where(weight == 0, 0.0, x) for x in (out, expected))
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


def recurrence(q, k, v, decay, memory, lengths, out_bar):
  """The definition in float64, token by token, and its gradients."""
  out, bars = np.zeros(v.shape), {x: np.zeros(q.shape) for x in "qkd"}
  bars["v"], memory = np.zeros(v.shape), memory.copy()
  before = np.zeros((*q.shape, v.shape[-1]))
  for b, t in np.ndindex(q.shape[:2]):
    if t < lengths[b]:
      before[b, t] = memory[b]
      memory[b] *= np.exp(decay[b, t])[..., None]
      memory[b] += k[b, t][..., None] * v[b, t][:, None]
      out[b, t] = np.einsum("hf,hfv->hv", q[b, t], memory[b])
      bars["q"][b, t] = np.einsum("hfv,hv->hf", memory[b], out_bar[b, t])
  for b in range(len(lengths)):
    bar = np.zeros(memory.shape[1:])
    for t in reversed(range(lengths[b])):
      bar += q[b, t][..., None] * out_bar[b, t][:, None]
      bars["k"][b, t] = np.einsum("hfv,hv->hf", bar, v[b, t])
      bars["v"][b, t] = np.einsum("hfv,hf->hv", bar, k[b, t])
      factor = np.exp(decay[b, t])[..., None]
      bars["d"][b, t] = (bar * factor * before[b, t]).sum(-1)
      bar *= factor
  return out, bars, memory


@pytest.mark.parametrize("rank", [1, 3, 4])
@pytest.mark.parametrize("chunk_size", [1, 4, 16])
def test_decay_of_any_strength_is_the_recurrence(rank, chunk_size):
  batch, length, heads, size, v_dim = 3, 11, 2, 3, 2
  lengths = np.array([length, 6, 0])
  rng = np.random.default_rng(rank)
  shape = (heads,) if rank == 1 else (batch, length, heads, size)[:rank]
  decay = -rng.exponential(size=shape)
  if rank > 1:
    # A reset, a step far beyond float32's digits of what follows, no decay.
    decay[:, 2], decay[0, 4], decay[:, 5], decay[1, 3] = -np.inf, -3e6, 0, -300
    decay[:, 6:] *= 1e-3
  q, k = rng.standard_normal((2, batch, length, heads, size))
  v, out_bar = rng.standard_normal((2, batch, length, heads, v_dim))
  memory = rng.standard_normal((batch, heads, size, v_dim + 1))
  whole = decay.reshape(*decay.shape, *(1,) * (4 - rank) * (rank > 1))
  if rank == 1:
    whole = decay[:, None]
  whole = np.broadcast_to(whole, q.shape)
  expected, bars, last = recurrence(
    q, k, v, whole, memory[..., :v_dim], lengths, out_bar
  )
  if rank < 4:
    bars["d"] = bars["d"].sum((0, 1, 3) if rank == 1 else 3)
  # What is padding holds anything.
  padding = np.arange(length)[None] >= lengths[:, None]
  arrays = {"q": q, "k": k, "v": v, "d": decay}
  for name, x in arrays.items():
    if name != "d" or rank > 1:
      x[padding] = np.nan
  state = attention.LinearState(
    jnp.asarray(memory, jnp.float32),
    jnp.zeros((batch, heads, v_dim)),
    jnp.zeros(batch),
  )

  @jax.jit
  def run(arrays, out_bar):
    def attend(a):
      return attention.linear_attention(
        a["q"],
        a["k"],
        a["v"],
        decay=a["d"],
        feature_map=features.identity,
        normalizer=linear_normalizers.identity(),
        causal=True,
        lengths=jnp.asarray(lengths),
        state=state,
        return_state=True,
        chunk_size=chunk_size,
      )

    out, pull, state_after = jax.vjp(attend, arrays, has_aux=True)
    return out, pull(out_bar)[0], state_after

  arrays = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
  out, got, after = run(arrays, jnp.asarray(out_bar, jnp.float32))
  near = {"rtol": 2e-4, "atol": 2e-5}
  np.testing.assert_allclose(out, expected, **near)
  np.testing.assert_allclose(after.memory[..., :v_dim], last, **near)
  np.testing.assert_array_equal(after.count, lengths)
  for name, bar in bars.items():
    np.testing.assert_allclose(got[name], bar, **near, err_msg=name)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("implementation", ["xla", "tpu_interpret"])
def test_padding_acts_on_nothing(causal, implementation):
  q, k, v, out_bar = randoms(5, *[(1, 6, 2, 4)] * 4)
  gates = [1 + x / 8 for x in randoms(6, (1, 6, 2), (1, 6, 1))]

  @jax.jit
  def run(arrays, lengths=None):
    def attend(q, k, v, key_gate, value_gate):
      return attention.linear_attention(
        q,
        k,
        v,
        key_gate=key_gate,
        value_gate=value_gate,
        causal=causal,
        lengths=lengths,
        implementation=implementation,
      )

    out, pull = jax.vjp(attend, *arrays)
    return out, *pull(out_bar[:, : out.shape[1]])

  queries = q[:, :4] if causal else q
  arrays = (queries, k[:, :4], v[:, :4], *(x[:, :4] for x in gates))
  expected = run(arrays)
  spoilt = [x.at[:, 4:].set(jnp.nan) for x in (q, k, v, *gates)]
  if not causal:
    spoilt[0] = q
  padded = run(spoilt, jnp.array([4]))
  for got, want in zip(padded, expected, strict=True):
    # Ours has zeros where there is padding, or is as long.
    np.testing.assert_allclose(
      got[:, : want.shape[1]], want, rtol=1e-5, atol=1e-6
    )
    assert not got[:, want.shape[1] :].any()


@pytest.mark.parametrize("causal", [False, True])
def test_a_query_without_keys_gets_zeros(causal):
  q = jnp.ones((1, 3, 2, 4))
  every = (
    linear_normalizers.division(0.0),
    linear_normalizers.subtraction(),
    linear_normalizers.identity(),
  )

  @jax.jit
  def run(q, k):
    def attend(q, k):
      results = [
        attention.linear_attention(
          q,
          k,
          k,
          normalizer=normalizer,
          causal=causal,
          lengths=jnp.array([0]),
          return_state=True,
        )
        for normalizer in every
      ]
      return [out for out, _ in results], [state for _, state in results]

    out, pull, states = jax.vjp(attend, q, k, has_aux=True)
    return out, pull(out), states

  for arrays in ((q, q), (q[:, :0] if causal else q, q[:, :0])):
    everything = run(*arrays)
    assert everything[0][0].shape == arrays[0].shape
    assert not any(x.any() for x in jax.tree.leaves(everything))


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
    (
      {
        "causal": True,
        "decay": -jnp.ones(2),
        "normalizer": linear_normalizers.subtraction(),
      },
      "decay goes with division and identity, not Subtraction",
    ),
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
