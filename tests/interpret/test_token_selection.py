"""Tokens that a ViT marks: golden numbers, sorted NumPy, traps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interpret import token_selection


def test_the_golden_outliers():
  values = jnp.array([1.0, 1, 2, 2, 3, 3, 4, 4, 20, 30])
  assert token_selection.outliers(values) == 2
  # The fence is 7, and a value at it is inside.
  assert token_selection.outliers(values.at[8].set(7.0)) == 1
  both = token_selection.outliers(jnp.stack([values, jnp.ones(10)]))
  np.testing.assert_array_equal(both, [2, 0])


def maps(batch=3, heads=2, tokens=17, seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(batch, heads, tokens, tokens)) * 2
  return jax.nn.softmax(jnp.asarray(logits, jnp.float32))


def test_what_is_read_of_maps():
  weights = maps()
  array = np.asarray(weights)
  np.testing.assert_allclose(
    token_selection.class_attention(weights),
    array[:, :, 0, 1:].sum(1),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    token_selection.attention_received(weights),
    array.mean((1, 2)),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    token_selection.attention_received(weights, class_token=True),
    array[:, :, 1:, 1:].mean((1, 2)),
    rtol=1e-5,
  )
  # The sum over keys, as released, says the same of every token.
  np.testing.assert_allclose(array.sum(-1), 1.0, rtol=1e-5)


def test_selection_equals_sorting():
  early, late = (
    np.array(token_selection.class_attention(maps(seed=seed)))
    for seed in (1, 2)
  )
  late[0, 5], late[2, [1, 9]] = 8.0, 9.0
  select = jax.jit(token_selection.select, static_argnums=2)
  local, summary = select(jnp.asarray(early), jnp.asarray(late), 0.25)
  for row in range(3):
    low, high = np.percentile(late[row], (25, 75))
    count = (late[row] > high + 1.5 * (high - low)).sum()
    outliers = set(np.argsort(-late[row])[:count])
    assert set(np.flatnonzero(summary[row])) == outliers
    first = set(np.argsort(-early[row])[:4])
    assert set(np.flatnonzero(local[row])) == first - outliers
  assert summary[0, 5]
  assert summary[2, 9]


def test_spatial_tokens_join_the_local_ones():
  early, late = jnp.arange(16.0)[None], jnp.zeros((1, 16)).at[0, 1].set(5.0)
  spatial = -early
  local, summary = token_selection.select(
    early, late, 0.25, spatial=spatial, spatial_share=0.125
  )
  # Patch 1 is a summary, and so not local too.
  np.testing.assert_array_equal(np.flatnonzero(local), [0, 12, 13, 14, 15])
  np.testing.assert_array_equal(np.flatnonzero(summary), [1])


def test_equal_values_are_taken_from_the_first():
  np.testing.assert_array_equal(
    token_selection.top(jnp.ones(5), 2), [1, 1, 0, 0, 0]
  )
  each = token_selection.top(jnp.ones((2, 3)), jnp.array([0, 3]))
  np.testing.assert_array_equal(each, [[0] * 3, [1] * 3])


def test_random_tokens_are_as_many():
  local, summary = token_selection.select(
    jnp.arange(64.0)[None].repeat(3, 0),
    jnp.zeros((3, 64)).at[0, :2].set(4.0).at[1, 7].set(5.0),
  )
  drawn = token_selection.random_like(jax.random.key(0), local, summary)
  for mine, theirs in zip(drawn, (local, summary), strict=True):
    np.testing.assert_array_equal(mine.sum(-1), theirs.sum(-1))
  assert not (drawn[0] & drawn[1]).any()
  assert (drawn[0] != local).any(-1).all()
  assert (drawn[0][0] != drawn[0][2]).any()


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: token_selection.class_attention(jnp.ones((1, 2, 3, 4))),
      r"weights have shape \(1, 2, 3, 4\)",
    ),
    (
      lambda: token_selection.select(jnp.ones((1, 4)), jnp.ones((1, 5))),
      r"early has shape \(1, 4\)",
    ),
    (
      lambda: token_selection.select(jnp.ones((1, 4)), jnp.ones((1, 4)), 1.5),
      "share is 1.5",
    ),
    (
      lambda: token_selection.select(
        jnp.ones((1, 4)), jnp.ones((1, 4)), spatial_share=0.5
      ),
      "spatial is None; with spatial_share=0.5",
    ),
  ],
)
def test_what_does_not_fit_is_told(call, message):
  with pytest.raises(ValueError, match=message):
    call()
