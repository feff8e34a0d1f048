"""PSA's estimate for causal models, and what is chosen by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import pyramid_importance, pyramid_levels

SIZES = {"block_q": 8, "block_k": 12, "stride": 4}


def drawn(q_len, kv_len, seed=0):
  rng = np.random.default_rng(seed)
  q = rng.standard_normal((2, q_len, 4, 5)).astype(np.float32)
  k = rng.standard_normal((2, kv_len, 2, 5)).astype(np.float32)
  return q, k


def by_loops(q, k, block_q, block_k, stride, causal, scale=None):
  """Of one batch element and head, [tokens, dim], in float64."""
  dim = q.shape[-1]
  scale = dim**-0.5 if scale is None else scale
  rows, columns = (-(-len(x) // stride) for x in (q, k))
  q, k = (
    np.pad(x.astype(float), ((0, -len(x) % stride), (0, 0))) for x in (q, k)
  )
  found = np.zeros(
    (-(-rows * stride // block_q), -(-columns * stride // block_k))
  )
  for i in range(rows):
    seen = range(min(i + 1, columns)) if causal else range(columns)
    score = []
    for j in seen:
      pairs = [
        q[i * stride + n] @ k[j * stride + stride - 1 - n]
        for n in range(stride)
      ]
      score.append(scale * np.mean(pairs))
    weights = np.exp(score) / np.exp(score).sum()
    for j, weight in zip(seen, weights, strict=True):
      found[i * stride // block_q, j * stride // block_k] += weight
  return found


@pytest.mark.parametrize(
  ("q_len", "kv_len", "causal"), [(21, 50, False), (39, 39, True)]
)
def test_it_is_the_sum_of_weights_of_groups(q_len, kv_len, causal):
  q, k = drawn(q_len, kv_len)
  look = pyramid_importance.antidiagonal_importance(
    jnp.asarray(q), jnp.asarray(k), **SIZES, causal=causal
  )
  expected = [
    [
      by_loops(q[b, :, h], k[b, :, h // 2], **SIZES, causal=causal)
      for h in range(4)
    ]
    for b in range(2)
  ]
  np.testing.assert_allclose(look, expected, rtol=1e-5, atol=1e-7)
  assert look.dtype == jnp.float32
  # Each group of queries has one in all.
  total = np.asarray(look).sum(axis=(-2, -1))
  np.testing.assert_allclose(total, -(-q_len // 4), rtol=1e-5)


def test_groups_of_one_token_are_attention():
  q, k = map(jnp.asarray, drawn(16, 24))
  look = pyramid_importance.antidiagonal_importance(
    q, k, block_q=4, block_k=6, stride=1, scale=0.7
  )
  weights = np.asarray(attention.attention_weights(q, k, scale=0.7))
  blocks = weights.reshape(2, 4, 4, 4, 4, 6).sum(axis=(3, 5))
  np.testing.assert_allclose(look, blocks, rtol=1e-5)


def test_of_bfloat16_and_without_a_gradient():
  q, k = (jnp.asarray(x, jnp.bfloat16) for x in drawn(24, 24))
  half, full = (
    pyramid_importance.antidiagonal_importance(*pair, **SIZES)
    for pair in ((q, k), (q.astype(jnp.float32), k.astype(jnp.float32)))
  )
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, full, rtol=1e-5)
  grad = jax.grad(
    lambda q: pyramid_importance.antidiagonal_importance(q, k, **SIZES).std()
  )(q.astype(jnp.float32))
  assert not grad.any()


def test_levels_of_causal_rows_are_shares_of_what_is_before():
  bounds = (0.2, 0.3, 0.5, 0.9)
  rng = np.random.default_rng(1)
  importance = np.tril(rng.uniform(1, 2, (2, 3, 13, 13)))
  levels = np.asarray(
    pyramid_levels.levels_by_count(
      jnp.asarray(importance, jnp.float32), bounds, causal=True
    )
  )
  for row in range(13):
    ends = [int((row + 1) * bound) for bound in bounds]
    want = np.zeros(13, int)
    for level, end in reversed([*zip((1, 2, 4, 8), ends, strict=True)]):
      want[:end] = level
    order = np.argsort(-importance[:, :, row], axis=-1, kind="stable")
    got = np.take_along_axis(levels[:, :, row], order, axis=-1)
    np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))
  assert not np.triu(levels, 1).any()


def test_no_output_depends_on_later_tokens():
  """Section 8 (iv): the whole causal path, at the levels of the first."""
  q, k = (jnp.asarray(x) for x in drawn(40, 40))
  v = jnp.asarray(drawn(40, 40, seed=1)[1])
  sizes = {"block_q": 8, "block_k": 8}
  look = pyramid_importance.antidiagonal_importance(
    q, k, **sizes, stride=4, causal=True
  )
  levels = pyramid_levels.with_diagonal(
    pyramid_levels.levels_by_count(look, (0.2, 0.4, 0.7, 0.9), causal=True)
  )
  assert set(np.unique(levels)) == {0, 1, 2, 4, 8}

  def run(q, k, v):
    return attention.pyramid_attention(q, k, v, levels, causal=True, **sizes)

  first = run(q, k, v)
  for cut in (13, 32):
    moved = (x.at[:, cut:].add(3.0) for x in (q, k, v))
    out = run(*moved)
    np.testing.assert_allclose(out[:, :cut], first[:, :cut], atol=1e-6)
    assert np.abs(out[:, cut:] - first[:, cut:]).max() > 0.1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"stride": 0}, "stride"),
    ({"stride": 3}, "stride is 3; it must divide block_q=8, as 1 does"),
    ({"stride": 8}, "stride is 8; it must divide block_k=12, as 4 does"),
    ({"causal": True}, "causal is True, and q has 21 tokens and k 24"),
    ({"block_q": 0}, "block_q"),
  ],
)
def test_errors(options, message):
  q, k = map(jnp.asarray, drawn(21, 24))
  with pytest.raises(ValueError, match=message):
    pyramid_importance.antidiagonal_importance(q, k, **{**SIZES, **options})
