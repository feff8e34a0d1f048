"""Scales against their formulas and the numbers of the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, scales

rng = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
  ("trained", "now", "factor"),
  [
    (4096, 16384, 1.0801),
    (1024, 4096, 1.0954),
    (256, 1024, 1.1180),
    (64, 256, 1.1547),
    (4096, 784, 0.8951),
    # FreeSwim's constant.
    (1560, 3120, 1.0461),
  ],
)
def test_entropy(trained, now, factor):
  got = scales.entropy(now, trained, 64) * 8
  assert got == pytest.approx(factor, abs=6e-5)
  exact = math.sqrt(math.log(now, trained) / 64)
  assert scales.entropy(now, trained, 64) == pytest.approx(exact, rel=1e-12)


def test_entropy_at_the_size_of_training_changes_no_bit():
  q, k, v = (normal(2, 24, 2, 5) for _ in range(3))
  for tokens in (24, 1560):
    scale = scales.entropy(tokens, tokens, 5)
    assert scale == 5**-0.5
    np.testing.assert_array_equal(
      attention.dot_product_attention(q, k, v, scale=scale),
      attention.dot_product_attention(q, k, v),
    )


@pytest.mark.parametrize("now", [256, 1024])
def test_entropy_keeps_the_entropy_of_attention(now):
  """ln N - lambda^2 v / 2 for logits of variance v = dim."""
  dim, trained = 64, 256
  q, k = (rng.standard_normal((n, dim)).astype(np.float32) for n in (200, now))
  kept = []
  for scale in (dim**-0.5, scales.entropy(now, trained, dim)):
    weights = attention.attention_weights(
      jnp.asarray(q[None, :, None]), jnp.asarray(k[None, :, None]), scale=scale
    )
    entropy = -np.sum(weights * np.log(weights), axis=-1).mean()
    expected = math.log(now) - scale**2 * dim / 2
    assert entropy == pytest.approx(expected, rel=0.02)
    kept.append(entropy / math.log(now))
  # What is kept is the share of ln N, which the constant scale moves.
  trained_share = 1 - 1 / (2 * math.log(trained))
  assert kept[1] == pytest.approx(trained_share, rel=0.01)
  if now > trained:
    assert kept[0] > kept[1] + 0.01


def test_entropy_of_arrays():
  """One for each count, below 2 as of 2, and that of training to the bit."""
  counts = np.array([0, 1, 2, 3, 64, 1560, 16384])
  for dtype in (jnp.int32, jnp.float32):
    got = scales.entropy(jnp.asarray(counts, dtype), 64, 5)
    exact = np.sqrt(np.log(np.maximum(counts, 2)) / np.log(64) / 5)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, rtol=3e-7)
    # Both may be arrays.
    both = jax.jit(scales.entropy, static_argnums=2)(
      jnp.asarray(counts, dtype), jnp.asarray(counts), 5
    )
    np.testing.assert_array_equal(both, np.float32(5**-0.5))


def test_entropy_by_what_a_sparse_mask_shows():
  """Trap 5 of the sheet: the keys that a query really sees."""
  q, k, v = (normal(2, 12, 2, 5) for _ in range(3))
  visible = np.asarray(rng.random((12, 12)) > 0.4)
  visible[3] = False
  mask = masks.dense(jnp.asarray(visible))
  scale = scales.entropy(mask.count(12, 12), 4, 5)
  assert scale.shape == (1, 1, 12)
  got = attention.dot_product_attention(q, k, v, mask=mask, scale=scale)
  seen = np.maximum(visible.sum(-1), 2)
  score = np.einsum("bihd,bjhd->bhij", q, k)
  score *= np.sqrt(np.log(seen) / np.log(4) / 5)[:, None]
  weights = np.where(visible, np.exp(score), 0.0)
  weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-9)
  np.testing.assert_allclose(
    got, np.einsum("bhij,bjhd->bihd", weights, v), atol=2e-6
  )
  # As many keys as in training, each query of its own number: no bit changes.
  same = scales.entropy(mask.count(12, 12), mask.count(12, 12), 5)
  np.testing.assert_array_equal(
    attention.dot_product_attention(q, k, v, mask=mask, scale=same),
    attention.dot_product_attention(q, k, v, mask=mask),
  )


def test_entropy_in_windows_and_halos():
  """There the keys are those of a window, whatever the image is."""
  q, k, v = (normal(1, 6, 6, 1, 4) for _ in range(3))
  scale = scales.entropy(9, 4, 4)
  by_hand = math.sqrt(math.log(9) / math.log(4)) * q
  for attend in (attention.block_attention, attention.grid_attention):
    np.testing.assert_allclose(
      attend(q, k, v, window_size=3, scale=scale),
      attend(by_hand, k, v, window_size=3),
      atol=1e-6,
    )
    np.testing.assert_array_equal(
      attend(q, k, v, window_size=3, scale=scales.entropy(9, 9, 4)),
      attend(q, k, v, window_size=3),
    )
  halo = {"block_size": 3, "halo_size": 1}
  scale = scales.entropy(25, 9, 4)
  by_hand = math.sqrt(math.log(25) / math.log(9)) * q
  np.testing.assert_allclose(
    attention.halo_attention(q, k, v, scale=scale, **halo),
    attention.halo_attention(by_hand, k, v, **halo),
    atol=1e-6,
  )


def test_entropy_errors():
  with pytest.raises(ValueError, match="tokens is 1 and trained_tokens is 9"):
    scales.entropy(1, 9, 4)


def test_log_length():
  got = scales.log_length(jnp.array([[1, 2, 1024]]), 64)
  expected = [[0, math.log(64) * math.log(2), math.log(64) * math.log(1024)]]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_log_length_of_queries_that_see_nothing():
  """Padding on the left: those rows must not make gradients NaN."""
  q, k, v = (normal(1, 4, 2, 3) for _ in range(3))
  mask = masks.causal(-2)
  visible = jnp.maximum(jnp.arange(4) - 1, 0)
  for normalizer in (
    attention.normalizers.softplus(),
    attention.normalizers.reweighted_softplus(15.0),
  ):

    def loss(q, k, v, normalizer=normalizer):
      out = attention.dot_product_attention(
        q,
        k,
        v,
        scale=scales.log_length(visible, 3),
        mask=mask,
        normalizer=normalizer,
      )
      return jnp.sum(out**2)

    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
    for gradient in gradients:
      assert np.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(2, 1), (5,), (3, 1, 1), (3, 2, 5)])
def test_scale_of_heads_and_queries(shape):
  q, k = normal(3, 5, 2, 4), normal(3, 6, 2, 4)
  scale = normal(*shape)
  got = attention.attention_weights(q, k, scale=scale)
  scores = np.einsum("bihd,bjhd->bhij", q, k) * np.asarray(scale)[..., None]
  np.testing.assert_allclose(got, jax.nn.softmax(scores), atol=1e-6)


def test_scale_has_a_gradient():
  q, k, v = normal(1, 5, 2, 4), normal(1, 6, 2, 4), normal(1, 6, 2, 4)

  def loss(scale, q):
    out = attention.dot_product_attention(q, k, v, scale=scale)
    return jnp.sum(jnp.sin(out))

  def in_queries(scale, q):
    return loss(1.0, q * scale.swapaxes(0, 1)[None, :, :, None])

  scale = normal(2, 5)
  for a, b in zip(
    jax.jit(jax.grad(loss, (0, 1)))(scale, q),
    jax.jit(jax.grad(in_queries, (0, 1)))(scale, q),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_scale_that_does_not_fit():
  q = normal(3, 5, 2, 4)
  for shape in ((3, 1), (2, 2, 5), (1, 1, 1, 5)):
    with pytest.raises(ValueError, match=r"scale has shape .*\(3, 2, 5\)"):
      attention.dot_product_attention(q, q, q, scale=normal(*shape))
