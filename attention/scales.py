"""Scales of scores that depend on how many tokens there are."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from attention import checks


def entropy(
  tokens: int | Num[Array, "..."],
  trained_tokens: int | Num[Array, "..."],
  dim: int,
) -> float | Float[Array, "..."]:
  """Returns sqrt(log_T(N) / dim), which keeps the entropy of attention.

  "Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image
  Synthesis" (arXiv 2306.08645), with N = `tokens` now and T = `trained_tokens`
  in training. FreeSwim (arXiv 2511.14712) uses N = 2 T. For self-attention:
  the keys of a text are as many as in training. Where N = T the scale is
  `dim ** -0.5` to the bit. `entropy(N, T, 1)` is the factor by itself, for
  scales that are in the projections.

  Whole numbers give a number, for which kernels are compiled. Arrays give a
  scale for each query that has a number of visible keys of its own, as those
  of `mask.count(q_len, kv_len)`, [batch, heads, q_len], which is a `scale` of
  `dot_product_attention`. That N is what a query sees there is ours.

  Args:
    tokens: number of keys now. In arrays, what is below 2 counts as 2.
    trained_tokens: number of keys in training, likewise.
    dim: width of a head.
  """
  checks.whole("dim", dim, 1)
  counts = {"tokens": tokens, "trained_tokens": trained_tokens}
  whole = {n: x for n, x in counts.items() if not hasattr(x, "dtype")}
  for name, value in whole.items():
    checks.whole(name, value, 1)
  if min(whole.values(), default=2) < 2:
    described = " and ".join(f"{n} is {x}" for n, x in whole.items())
    raise ValueError(f"{described}; both must be at least 2")
  if len(whole) == 2:
    return dim**-0.5 * math.sqrt(math.log(tokens) / math.log(trained_tokens))
  now, then = (
    jnp.maximum(jnp.asarray(x, jnp.float32), 2.0) for x in counts.values()
  )
  ratio = jnp.log(now) / jnp.log(then)
  # Compilers may round two logarithms of one number differently.
  return dim**-0.5 * jnp.sqrt(jnp.where(now == then, 1.0, ratio))


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
