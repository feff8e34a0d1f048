"""Sparse attention that knows what full attention was: Re-ttention.

"Re-ttention: Ultra Sparse Visual Generation via Attention Statistical Reshape"
(NeurIPS 2025, arXiv 2505.22918; masks and schedule from its released code,
cccrrrccc/Re-ttention). A window sees so few keys that its softmax gives them
far too much. In some steps of sampling attention is full, and two statistics of
it are kept: the share of the denominator that the keys of the window have, and
what the others add to the output. Steps in between see the window alone and are
corrected by both. The windows are `masks.share_window` of images and
`masks.frame_window` of videos.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from attention import checks
from attention.dot_product import dot_product_attention
from attention.mask_base import Mask


class Statistics(NamedTuple):
  """What a step of full attention leaves to sparse ones.

  Attributes:
    ratio: share of the softmax's denominator that the kept keys have, float32
      [batch, q_len, heads, 1].
    residual: what the keys that are left out add to the output, float32 [batch,
      q_len, heads, v_dim].
  """

  ratio: Array
  residual: Array


def attention_with_statistics(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len k_heads dim"],
  v: Float[Array, "batch kv_len v_heads v_dim"],
  mask: Mask,
  *,
  scale: float | None = None,
  implementation: str = "auto",
) -> tuple[Float[Array, "batch q_len heads v_dim"], Statistics]:
  """Returns full attention, and what `reshaped_attention` needs of it.

  Equations 8 and 10: with S the keys that `mask` keeps, ratio = sum over S of
  exp(s) / sum of exp(s), and residual = A v - ratio * softmax_S(s) v. The ratio
  is of two log-sum-exps, so that no row's maximum is anywhere twice. Both calls
  can be kernels, and the second one costs as little as a sparse step.

  Args:
    q: queries.
    k: keys.
    v: values.
    mask: the mask of the sparse steps. A query that it leaves no key has all of
      its output as the residual.
    scale: factor of the scores; dim ** -0.5 if None.
    implementation: see `dot_product_attention`.
  """
  full, kept = (
    dot_product_attention(
      q,
      k,
      v,
      scale=scale,
      mask=which,
      return_log_sum_exp=True,
      implementation=implementation,
    )
    for which in (None, mask)
  )
  ratio = jnp.exp(kept.log_sum_exp - full.log_sum_exp)
  ratio = ratio.swapaxes(1, 2)[..., None]
  whole, part = (x.out.astype(jnp.float32) for x in (full, kept))
  return full.out, Statistics(ratio, whole - ratio * part)


def reshaped_attention(
  q: Float[Array, "batch q_len heads dim"],
  k: Float[Array, "batch kv_len k_heads dim"],
  v: Float[Array, "batch kv_len v_heads v_dim"],
  mask: Mask,
  statistics: Statistics,
  *,
  scale: float | None = None,
  implementation: str = "auto",
) -> Float[Array, "batch q_len heads v_dim"]:
  """Returns ratio * softmax_S(s) v + residual, equations 9 and 10.

  Args:
    q: queries.
    k: keys.
    v: values.
    mask: the mask that the statistics are of.
    statistics: of an earlier step.
    scale: factor of the scores; dim ** -0.5 if None.
    implementation: see `dot_product_attention`.
  """
  out = dot_product_attention(
    q, k, v, scale=scale, mask=mask, implementation=implementation
  )
  out = statistics.ratio * out.astype(jnp.float32) + statistics.residual
  return out.astype(q.dtype)


def ramped(
  statistics: Statistics, step: float, most: float | None = None
) -> Statistics:
  """Returns statistics with `step` more as the ratio, for the next sparse step.

  The released code adds 0.04 after each sparse step, and lets the ratio exceed
  1 where it was large.

  Args:
    statistics: those of the step before.
    step: what is added to the ratio.
    most: where it ends; None to let it grow.

  Raises:
    ValueError: unless they are finite numbers.
  """
  checks.number("step", step)
  if most is not None:
    checks.number("most", most)
  ratio = statistics.ratio + step
  return statistics._replace(
    ratio=ratio if most is None else jnp.minimum(ratio, most)
  )
