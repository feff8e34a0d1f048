"""Scales of scores that depend on how many tokens there are."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attention import checks


def entropy(tokens: int, trained_tokens: int, dim: int) -> float:
  """Returns sqrt(log_T(N) / dim), which keeps the entropy of attention.

  "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image
  Synthesis" (arXiv 2306.08645), with N = `tokens` now and T = `trained_tokens`
  in training. FreeSwim (arXiv 2511.14712) uses N = 2 T.

  Args:
    tokens: number of keys now.
    trained_tokens: number of keys in training.
    dim: width of a head.
  """
  for name, value in (
    ("tokens", tokens),
    ("trained_tokens", trained_tokens),
    ("dim", dim),
  ):
    checks.whole(name, value, 1)
  if min(tokens, trained_tokens) < 2:
    raise ValueError(
      f"tokens is {tokens} and trained_tokens {trained_tokens}; both must be "
      "at least 2"
    )
  return dim**-0.5 * math.sqrt(math.log(tokens) / math.log(trained_tokens))


def log_length(visible: Int[Array, "..."], dim: int) -> Float[Array, "..."]:
  """Returns ln(dim) * ln(n), the scale of cosine scores in LSSA.

  "Softplus Attention with Re-weighting" (arXiv 2501.13428), with n the number
  of keys that a query sees: for causal attention 1, 2, 3, ... The queries and
  keys must have unit norm.

  A query that sees no key gets the scale of one that sees one, zero.

  Args:
    visible: number of keys that each query sees, such as [q_len] or
      [batch, 1, q_len].
    dim: width of a head.
  """
  checks.integers("visible", visible)
  checks.whole("dim", dim, 1)
  return math.log(dim) * jnp.log(jnp.maximum(visible, 1).astype(jnp.float32))
