"""Weights of scores in NumPy, which share no code with the library.

`score` is [batch, heads, q_len, kv_len], and `seen` its booleans.
"""

import numpy as np


def softmax(score, seen, extra=0.0):
  largest = score.max(axis=-1, keepdims=True)
  weights = np.where(seen, np.exp(score - largest), 0)
  total = weights.sum(axis=-1, keepdims=True) + extra * np.exp(-largest)
  with np.errstate(divide="ignore"):
    lse = np.log(total) + largest
  return weights / np.where(total == 0, 1, total), lse[..., 0]


def softplus(score, seen):
  weights = np.where(seen, np.logaddexp(score, 0), 0)
  return weights / (weights.sum(axis=-1, keepdims=True) + 1e-8)


def reweighted(score, seen, power):
  count = seen.sum(axis=-1, keepdims=True)
  excess = count * softplus(score, seen) - np.where(count <= 3, 0, 1)
  weights = np.maximum(excess, 0) ** power
  return weights / (weights.sum(axis=-1, keepdims=True) + 1e-8)
