"""Metrics against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from interpret import metrics

LOGITS = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
LOGS = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))


def test_differences_of_rows_and_of_all():
  right, wrong = np.array([1, 0, 6]), np.array([2, 2, 3])
  found = metrics.logit_difference(jnp.asarray(LOGITS), right, wrong, 1)
  expected = [LOGITS[i, 1, right[i]] - LOGITS[i, 1, wrong[i]] for i in range(3)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  found = metrics.logit_difference(jnp.asarray(LOGITS), 4, 5)
  np.testing.assert_allclose(found, LOGITS[:, -1, 4] - LOGITS[:, -1, 5])


def test_log_probabilities_and_losses():
  logits = jnp.asarray(LOGITS)
  found = metrics.log_probability(logits, np.array([6, 1, 0]), 2)
  expected = LOGS[np.arange(3), 2, [6, 1, 0]]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  tokens = np.random.default_rng(1).integers(0, 7, (3, 5))
  each = [[LOGS[i, t, tokens[i, t + 1]] for t in range(4)] for i in range(3)]
  found = metrics.loss(logits, tokens)
  np.testing.assert_allclose(found, -np.mean(each, axis=1), rtol=1e-5)
  half = metrics.loss(logits.astype(jnp.bfloat16), tokens)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, found, atol=0.02)
  gradient = jax.grad(lambda x: metrics.loss(x, tokens).sum())(logits)
  # What follows the last token is not asked for.
  assert not gradient[:, -1].any()
  np.testing.assert_allclose(
    gradient[:, :-1].sum(-1), np.zeros((3, 4)), atol=1e-6
  )
