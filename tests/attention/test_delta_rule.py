"""The delta rule against its float64 loop, transformers and known figures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import (
  features,
  linear_checks,
  linear_normalizers,
  recurrence,
)
from tests import parity_helper

NAMES = ("q", "k", "v", "strength", "gate", "decay")


def by_loop(x, memory, lengths):
  """The definition, token by token; the factors are matrices.

  Args:
    x: arrays of NAMES by name, gate and strength [batch, length, heads], decay
      [batch, length, heads, dim].
    memory: at the start [batch, heads, dim, v_dim].
    lengths: of the sequences.
  """
  out, memory = np.zeros(x["v"].shape), memory.copy()
  for b, t, h in np.ndindex(x["v"].shape[:3]):
    if t < lengths[b]:
      key = x["k"][b, t, h] * x["gate"][b, t, h]
      beta = x["strength"][b, t, h]
      erased = np.eye(len(key)) - beta * np.outer(key, key)
      left = np.diag(np.exp(x["decay"][b, t, h]))
      written = beta * np.outer(key, x["v"][b, t, h])
      memory[b, h] = erased @ left @ memory[b, h] + written
      out[b, t, h] = x["q"][b, t, h] @ memory[b, h]
  return out, memory


def drawn(length, rank, seed=0):
  """Arrays of two heads, keys of unit norm, and a memory to begin with."""
  rng = np.random.default_rng(seed)
  shape = (3, length, 2)
  x = {name: rng.standard_normal((*shape, 4)) for name in "qk"}
  x["k"] /= np.linalg.norm(x["k"], axis=-1, keepdims=True)
  # Keys that are alike make the triangular system matter.
  x["k"][:, 1::2] = x["k"][:, ::2][:, : length // 2]
  x["v"] = rng.standard_normal((*shape, 3))
  x["strength"] = rng.uniform(0, 1, shape)
  x["gate"] = rng.uniform(0.5, 1.2, shape)
  x["decay"] = -rng.exponential(size=(*shape, 4)[: rank or 4]) * (rank > 0)
  return x, rng.standard_normal((3, 2, 4, 4))


def whole_decay(decay):
  decay = decay[..., None] if decay.ndim == 3 else decay
  return np.broadcast_to(decay, (*decay.shape[:3], 4))


def attend(x, memory, lengths, chunk_size=4, rank=4, dtype=jnp.float32):
  state = attention.LinearState(
    jnp.asarray(memory, jnp.float32),
    jnp.zeros((3, 2, 3)),
    jnp.zeros(3),
  )
  q, k, v = (jnp.asarray(x[name], dtype) for name in "qkv")
  return attention.linear_attention(
    q,
    k,
    v,
    feature_map=features.identity,
    normalizer=linear_normalizers.identity(),
    causal=True,
    key_gate=x["gate"],
    write_strength=x["strength"],
    decay=x["decay"] if rank else None,
    lengths=jnp.asarray(lengths),
    state=state,
    return_state=True,
    chunk_size=chunk_size,
  )


@pytest.mark.parametrize("rank", [0, 3, 4])
@pytest.mark.parametrize(("length", "chunk"), [(11, 4), (13, 64), (6, 1)])
def test_is_the_loop(rank, length, chunk):
  x, memory = drawn(length, rank)
  if rank:
    # A reset, one beyond float32's digits of what follows, none.
    x["decay"][:, 2], x["decay"][0, 4], x["decay"][:, 5] = -np.inf, -3e6, 0
  lengths = np.array([length, 5, 0])
  expected, last = by_loop(
    {**x, "decay": whole_decay(x["decay"])}, memory[..., :3], lengths
  )
  # What is padding holds anything.
  for name in NAMES:
    x[name][np.arange(length)[None] >= lengths[:, None]] = np.nan
  x = {name: jnp.asarray(a, jnp.float32) for name, a in x.items()}
  run = jax.jit(functools.partial(attend, chunk_size=chunk, rank=rank))
  out, state = run(x, memory, lengths)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(state.memory[..., :3], last, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(state.count, lengths)


@pytest.mark.parametrize("rank", [0, 3, 4])
def test_gradients_are_those_of_the_loop(rank):
  """By central differences of the float64 loop in random directions."""
  x, memory = drawn(9, rank, seed=1)
  lengths = np.array([9, 5, 0])
  rng = np.random.default_rng(2)
  weight = rng.standard_normal((3, 9, 2, 3))
  weight_after = rng.standard_normal((3, 2, 4, 3))

  def expected(x):
    whole = {**x, "decay": whole_decay(x["decay"])}
    out, last = by_loop(whole, x["memory"][..., :3], lengths)
    return (weight * out).sum() + (weight_after * last).sum()

  def ours(x):
    out, state = attend(x, x["memory"], lengths, rank=rank)
    return (out * weight).sum() + (state.memory[..., :3] * weight_after).sum()

  x["memory"] = memory
  bars = jax.jit(jax.grad(ours))(
    {name: jnp.asarray(a, jnp.float32) for name, a in x.items()}
  )
  for name in (*NAMES, "memory"):
    if name == "decay" and not rank:
      continue
    for _ in range(3):
      step = 1e-5 * rng.standard_normal(x[name].shape)
      ends = [expected({**x, name: x[name] + sign * step}) for sign in (1, -1)]
      slope = (np.asarray(bars[name], np.float64) * step).sum()
      np.testing.assert_allclose(
        slope, (ends[0] - ends[1]) / 2, rtol=2e-3, atol=2e-8, err_msg=name
      )


def test_no_nan_reaches_a_gradient():
  """Not from resets, nor from what padding holds."""
  x, memory = drawn(9, 3)
  x["decay"][:, 3], x["decay"][0, 6] = -np.inf, -1e30
  lengths = np.array([9, 5, 0])
  for name in NAMES:
    x[name][np.arange(9)[None] >= lengths[:, None]] = np.nan
  x = {name: jnp.asarray(a, jnp.float32) for name, a in x.items()}
  bars = jax.jit(jax.grad(lambda x: attend(x, memory, lengths)[0].sum()))(x)
  for name, bar in bars.items():
    assert np.isfinite(bar).all(), name
    assert np.abs(bar[0]).max() > 1e-3, name
    assert not bar[2].any(), name


def test_bfloat16_is_near():
  x, memory = drawn(11, 3)
  lengths = np.array([11, 5, 0])
  x = {name: jnp.asarray(a, jnp.float32) for name, a in x.items()}
  exact, _ = jax.jit(attend)(x, memory, lengths)
  half, state = jax.jit(functools.partial(attend, dtype=jnp.bfloat16))(
    x, memory, lengths
  )
  assert half.dtype == jnp.bfloat16
  assert state.memory.dtype == jnp.float32
  np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.1)


def test_continues_from_a_state():
  x, memory = drawn(11, 4)
  x = {name: jnp.asarray(a, jnp.float32) for name, a in x.items()}
  lengths = np.array([11] * 3)
  run = jax.jit(attend)
  whole, last = run(x, memory, lengths)
  outs, start = [], 0
  for size in (5, 1, 5):
    part = {name: a[:, start : start + size] for name, a in x.items()}
    out, state = run(part, memory, np.array([size] * 3))
    memory, start = state.memory, start + size
    outs.append(out)
  np.testing.assert_allclose(
    jnp.concatenate(outs, axis=1), whole, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(memory, last.memory, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [64, 100])
def test_keys_that_are_the_same_lose_no_digits(chunk):
  """Powers of their overlaps reach 10^28; a value replaces the one before."""
  key = jnp.full((1, 100, 1, 4), 0.5)
  v = jax.random.normal(jax.random.key(0), (1, 100, 1, 3))
  out = attention.linear_attention(
    key,
    key,
    v,
    feature_map=features.identity,
    normalizer=linear_normalizers.identity(),
    causal=True,
    write_strength=jnp.ones((1, 100, 1)),
    chunk_size=chunk,
  )
  np.testing.assert_allclose(out, v, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_inverse_of_a_triangle(size):
  lower = np.tril(np.random.default_rng(size).uniform(-1, 1, (2, size, size)))
  lower = np.tril(lower, -1) / max(size, 4) * 4
  expected = np.linalg.inv(lower + np.eye(size)[None])
  got = recurrence._inverse(jnp.asarray(lower, jnp.float32))
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("pairs", "delta", "hebb"),
  [(16, 0.367, 0.484), (32, 0.535, 0.696), (64, 0.769, 0.992)]
  + [(96, 0.926, 1.218)],
)
def test_recall_after_one_pass(pairs, delta, hebb):
  """RMS errors that our fact sheet on arXiv 2508.08289 measured, d = 64."""
  draws = 60
  rng = np.random.default_rng(pairs)
  k, v = rng.standard_normal((2, draws, pairs, 1, 64))
  k, v = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (k, v))

  @jax.jit
  def error(strength):
    _, state = attention.linear_attention(
      k,
      k,
      v,
      feature_map=features.identity,
      normalizer=linear_normalizers.identity(),
      causal=True,
      return_state=True,
      write_strength=strength,
    )
    read = jnp.einsum("bnhf,bhfv->bnhv", k, state.memory[..., :64])
    return jnp.sqrt(jnp.mean(jnp.sum((read - v) ** 2, axis=-1)))

  k, v = (jnp.asarray(x, jnp.float32) for x in (k, v))
  strength = jnp.ones((1, pairs, 1))
  # The sheet has 30 draws and three digits.
  assert abs(error(strength) - delta) < 0.012
  assert abs(error(None) - hebb) < 0.012


@pytest.mark.parity
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_transformers_gated_delta_rule(form):
  torch, module = parity_helper.import_transformers("qwen3_next")
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 2, 70, 2, 6)).astype(np.float32)
  v = rng.standard_normal((2, 70, 4, 5)).astype(np.float32)
  beta = rng.uniform(0, 1, (2, 70, 4)).astype(np.float32)
  decay = -rng.exponential(0.3, (2, 70, 4)).astype(np.float32)
  start = rng.standard_normal((2, 4, 6, 5)).astype(np.float32)
  weight = rng.standard_normal((2, 70, 4, 5)).astype(np.float32)
  arrays = (q, k, v, decay, beta, start)

  theirs = [torch.from_numpy(x).requires_grad_() for x in arrays]
  rule = getattr(module, f"torch_{form}_gated_delta_rule")
  rule = getattr(rule, "__wrapped__", rule)
  expected, last = rule(
    *theirs[:5],
    initial_state=theirs[5],
    output_final_state=True,
    use_qk_l2norm_in_kernel=True,
  )
  (expected * torch.from_numpy(weight)).sum().backward()

  def ours(q, k, v, decay, beta, start):
    q, k = (jnp.repeat(x, 2, axis=2) for x in (q, k))
    unit = lambda x: x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6)
    state = attention.LinearState(
      jnp.pad(start, ((0, 0),) * 3 + ((0, 1),)),
      jnp.zeros((2, 4, 5)),
      jnp.zeros(2),
    )
    out, state = attention.linear_attention(
      q,
      k,
      v,
      feature_map=unit,
      normalizer=linear_normalizers.identity(),
      causal=True,
      decay=decay,
      write_strength=beta,
      state=state,
      return_state=True,
    )
    # Theirs divides by the square root of the channels.
    return (out * 6**-0.5 * weight).sum(), (out * 6**-0.5, state)

  (_, (out, state)), bars = jax.jit(
    jax.value_and_grad(ours, argnums=range(6), has_aux=True)
  )(*arrays)
  near = {"rtol": 1e-4, "atol": 2e-5}
  np.testing.assert_allclose(out, expected.detach().numpy(), **near)
  np.testing.assert_allclose(
    state.memory[..., :5], last.detach().numpy(), **near
  )
  for name, bar, x in zip("qkvgbs", bars, theirs, strict=True):
    np.testing.assert_allclose(bar, x.grad.numpy(), err_msg=name, **near)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"causal": False}, "write_strength needs causal=True"),
    (
      {"normalizer": linear_normalizers.division()},
      "write_strength goes with identity, not Division: .*nothing to divide",
    ),
  ],
)
def test_errors(options, message):
  x = jnp.ones((1, 4, 2, 4))
  options = {
    "causal": True,
    "normalizer": linear_normalizers.identity(),
    "write_strength": jnp.ones((1, 4, 2)),
    **options,
  }
  with pytest.raises(ValueError, match=message):
    attention.linear_attention(x, x, x, **options)


@pytest.mark.parametrize(
  ("strength", "message"),
  [
    (jnp.ones((1, 3, 2)), "write_strength has shape .*kv_len 4 and 2 heads"),
    (jnp.ones((1, 4, 2), jnp.int32), "write_strength is an array of int32"),
  ],
)
def test_a_strength_that_does_not_fit(strength, message):
  x = jnp.ones((1, 4, 2, 4))
  with pytest.raises(ValueError, match=message):
    linear_checks.gates(x, x, write_strength=strength)
