"""Dot-product attention with five slots, the definition of right for kernels.

scores  = scale * q k^T
scores  = score_mods(scores)     attention.scores
visible = mask(positions)        attention.masks
weights = normalizer(scores)     attention.normalizers
out     = finish(weights v)      attention.finishes
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attention import checks, idle, normalizers, slots, tiles
from attention.finishes import Finish
from attention.kernels import dispatch, flash
from attention.mask_base import Mask
from attention.normalizers import Normalizer
from attention.scores import ScoreMod


class AttentionResult(NamedTuple):
  """What attention returns when more than the output is asked for.

  Attributes:
    out: [..., q_len, heads, v_dim].
    log_sum_exp: logarithm of the denominator of the softmax, [..., heads,
      q_len] in float32, -inf for a query that sees nothing; None if not asked
      for.
    weights: [..., heads, q_len, kv_len] in float32; None if not asked for.
  """

  out: Array
  log_sum_exp: Array | None
  weights: Array | None


def dot_product_attention(
  q: Float[Array, "*batch q_len heads dim"],
  k: Float[Array, "*batch kv_len k_heads dim"],
  v: Float[Array, "*batch kv_len v_heads v_dim"],
  *,
  bias: Float[Array, "..."] | None = None,
  scale: float | Float[Array, "..."] | None = None,
  score_mods: ScoreMod | Sequence[ScoreMod] = (),
  mask: Mask | None = None,
  normalizer: Normalizer | None = None,
  finish: Finish | Sequence[Finish] = (),
  return_log_sum_exp: bool = False,
  return_weights: bool = False,
  implementation: str = "auto",
) -> Float[Array, "*batch q_len heads v_dim"] | AttentionResult:
  """Returns `finish(normalizer(mask(score_mods(scale * q k^T))) v)`.

  Equation 1 of "Attention Is All You Need" (arXiv 1706.03762) with each of its
  places open, in the conventions of `jax.nn.dot_product_attention`, but with
  any number of leading axes: windows are just another batch axis. Scores,
  normalisation and accumulation are float32 whatever the dtype of the inputs.
  Query head h uses key head h * k_heads // heads and value head
  h * v_heads // heads. A query that sees no key gets zeros. What a key holds
  that no query sees, and a query that sees no key, reaches no output and no
  gradient, be it NaN, as far as the mask knows of them (`Mask.idle`).

  Args:
    q: queries [..., q_len, heads, dim].
    k: keys [..., kv_len, k_heads, dim]; k_heads divides heads.
    v: values [..., kv_len, v_heads, v_dim]; v_heads divides heads.
    bias: shorthand for `scores.bias` before `score_mods`: anything that
      broadcasts to [..., heads, q_len, kv_len].
    scale: factor of the scores; dim ** -0.5 if None. An array must broadcast
      to [batch, heads, q_len]: [heads, 1] is a scale for each head, [q_len] one
      for each query.
    score_mods: changes of the scores, in order (`attention.scores`).
    mask: which keys a query sees (`attention.masks`); all if None.
    normalizer: how scores become weights (`attention.normalizers`); softmax if
      None.
    finish: changes of the output, in order (`attention.finishes`).
    return_log_sum_exp: whether to return the log-sum-exp as well.
    return_weights: whether to return the weights as well, which only the
      reference has.
    implementation: "auto", "xla" or "pallas"; see `kernels.dispatch`.

  With more than one leading axis, the batch of masks and modifications is all
  of them in row-major order.

  Returns:
    [..., q_len, heads, v_dim] in the dtype of `q`, or an AttentionResult if
    more is asked for.

  Raises:
    ValueError: if shapes or dtypes do not agree, the normalizer has no
      log-sum-exp, or the implementation cannot take the arguments.
  """
  checks.flag("return_log_sum_exp", return_log_sum_exp)
  checks.flag("return_weights", return_weights)
  q, k, v, lead, slots_filled = _filled(
    q, k, v, bias, scale, score_mods, mask, normalizer
  )
  finish = slots.as_tuple(finish)
  for step in finish:
    checks.instance("finish", step, Finish, "attention.finishes")
  target = dispatch.choose(
    implementation,
    _reasons(q, k, v, *slots_filled, return_weights=return_weights),
  )
  if target is None:
    # Kernels may do it themselves, to read keys and values once.
    q, k, v = idle.emptied(q, k, v, mask)
    out, lse, weights = _reference(q, k, v, *slots_filled)
  else:
    (out, lse), weights = _fused(q, k, v, *slots_filled, target), None
  if return_log_sum_exp and lse is None:
    raise ValueError(
      f"return_log_sum_exp is True, but {type(slots_filled[-1]).__name__} "
      "weights have no log-sum-exp; softmax and affine have"
    )
  for step in finish:
    out = step.apply(
      out.astype(jnp.float32), lambda: _value_sum(q, k, v, mask, target)
    )
  out = out.astype(q.dtype).reshape(*lead, *out.shape[1:])
  if not (return_log_sum_exp or return_weights):
    return out
  return AttentionResult(
    out,
    lse.reshape(*lead, *lse.shape[1:]) if return_log_sum_exp else None,
    weights.reshape(*lead, *weights.shape[1:]) if return_weights else None,
  )


def attention_weights(
  q: Float[Array, "*batch q_len heads dim"],
  k: Float[Array, "*batch kv_len k_heads dim"],
  *,
  bias: Float[Array, "..."] | None = None,
  scale: float | Float[Array, "..."] | None = None,
  score_mods: ScoreMod | Sequence[ScoreMod] = (),
  mask: Mask | None = None,
  normalizer: Normalizer | None = None,
  edit_scores: Callable[[Array], Array] | None = None,
) -> Float[Array, "*batch heads q_len kv_len"]:
  """Returns the weights of `dot_product_attention` in float32: the map.

  Arguments and errors are those of `dot_product_attention`, but for one. With
  `apply_attention_weights` it is the way to look at or to edit the map.

  Args:
    edit_scores: maps the scores before the normaliser, float32 [..., heads,
      q_len, kv_len] and -inf where a key is hidden, to those that count. What
      is hidden stays so.
  """
  lead = q.shape[:-3]
  if edit_scores is None:
    edit = None
  else:

    def edit(values):
      edited = edit_scores(values.reshape(*lead, *values.shape[1:]))
      return edited.reshape(values.shape)

  q, k, _, _, slots_filled = _filled(
    q, k, k, bias, scale, score_mods, mask, normalizer
  )
  q, k, _ = idle.emptied(q, k, k, mask)
  weights, _ = _weights(q, k, *slots_filled, edit)
  return weights.reshape(*lead, *weights.shape[1:])


def apply_attention_weights(
  weights: Float[Array, "*batch heads q_len kv_len"],
  v: Float[Array, "*batch kv_len v_heads v_dim"],
) -> Float[Array, "*batch q_len heads v_dim"]:
  """Returns `weights v`, accumulated in float32, in the dtype of `v`.

  Args:
    weights: attention map [..., heads, q_len, kv_len].
    v: values [..., kv_len, v_heads, v_dim]; v_heads divides heads.

  Raises:
    ValueError: if the shapes of `weights` and `v` do not agree.
  """
  for name, x in (("weights", weights), ("v", v)):
    checks.floating(name, x)
  *lead, heads, _, kv_len = weights.shape
  if (*v.shape[:-3], v.shape[-3]) != (*lead, kv_len) or heads % v.shape[-2]:
    raise ValueError(
      f"v has shape {v.shape}; weights of shape {weights.shape} need values "
      "[..., kv_len, v_heads, v_dim] with the same leading axes and kv_len, "
      "and v_heads that divides heads"
    )
  return _weigh(weights, v).astype(v.dtype)


def _filled(q, k, v, bias, scale, score_mods, mask, normalizer):
  """Checks a call, and makes one of its leading axes and its slots explicit.

  Returns:
    (q, k, v, lead, slots): arrays with one axis in the place of `lead`, and
    scale, score modifications, mask and normalizer.
  """
  _check(q, k, v)
  lead = q.shape[:-3]
  q, k, v = (x.reshape(math.prod(lead), *x.shape[-3:]) for x in (q, k, v))
  shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
  mods = slots.all_mods(bias, score_mods, lead, shape)
  scale, mods = slots.split_scale(scale, mods, q.shape[-1], shape)
  slots.check_operands(mods, mask, shape)
  normalizer = normalizers.softmax() if normalizer is None else normalizer
  checks.instance("normalizer", normalizer, Normalizer, "attention.normalizers")
  normalizer.check(*shape[:3])
  return q, k, v, lead, (scale, mods, mask, normalizer)


def _reference(q, k, v, scale, mods, mask, normalizer):
  """Returns the output in float32, the log-sum-exp and the weights."""
  weights, lse = _weights(q, k, scale, mods, mask, normalizer)
  return _weigh(weights, v), lse, weights


def _weights(q, k, scale, mods, mask, normalizer, edit=None):
  """Returns the weights and the log-sum-exp."""
  values = _products(q, k) * scale
  for mod in mods:
    values = tiles.over_all_scores(
      mod.modify, mod.operands(), values.shape, values
    )
  visible = None
  if mask is not None:
    batch, heads, q_len, kv_len = values.shape
    visible = mask.dense(q_len, kv_len, batch=batch, heads=heads)
  if edit is not None:
    hidden = values if visible is None else jnp.where(visible, values, -jnp.inf)
    values = edit(hidden)
  return normalizer.weights(values, visible)


def _reasons(q, k, v, scale, mods, mask, normalizer, *, return_weights):
  """Returns why there is no kernel for a call, for each platform."""

  def reason(platform):
    if return_weights:
      return "return_weights is True, and only the reference has the weights"
    if not isinstance(scale, int | float):
      return "scale is a traced scalar; pass a number or an array [1]"
    empty = checks.no_scores(q, k)
    if empty is not None:
      return empty
    return flash.unsupported(platform, q, k, v, mods, mask)

  return {
    platform: functools.partial(reason, platform)
    for platform in flash.PLATFORMS
  }


def _fused(q, k, v, scale, mods, mask, normalizer, target):
  """Returns the output and the log-sum-exp by kernels."""

  def attend(*more, weigh="softmax"):
    return flash.flash_attention(
      q,
      k,
      v,
      scale=scale,
      # A sum of values depends on no score.
      mods=() if weigh == "ones" else (*mods, *more),
      mask=mask,
      weigh=weigh,
      target=target,
    )

  def counts():
    if mask is None:
      return jnp.full((1, 1, 1), k.shape[1], jnp.float32)
    batch, q_len, heads, _ = q.shape
    return mask.count(q_len, k.shape[1], batch=batch, heads=heads)

  return normalizer.fused(attend, counts)


def _products(q: Array, k: Array) -> Array:
  """Returns q k^T in float32, [batch, heads, q_len, kv_len]."""
  batch, q_len, heads, dim = q.shape
  if heads == k.shape[2] and not _few(q_len, k.shape[1]):
    return _dot("bqhd,bkhd->bhqk", q, k)
  # Heads that share keys are one more axis: repeating the keys copies them.
  q = q.reshape(batch, q_len, k.shape[2], heads // k.shape[2], dim)
  products = _dot("bqhgd,bkhd->bhgqk", q, k)
  return products.reshape(batch, heads, q_len, k.shape[1])


def _weigh(weights: Array, v: Array) -> Array:
  """Returns the sums of values [..., q_len, heads, v_dim] in float32.

  The product runs in the dtype of the values: that is what matrix units want.
  """
  *lead, heads, q_len, kv_len = weights.shape
  weights = weights.astype(v.dtype)
  if heads == v.shape[-2] and not _few(q_len, kv_len):
    return _dot("...hqk,...khd->...qhd", weights, v)
  # The rows are all queries that share a head.
  rows = (v.shape[-2], heads // v.shape[-2] * q_len)
  weights = weights.reshape(*lead, *rows, kv_len)
  out = _dot("...hrk,...khd->...hrd", weights, v)
  return out.reshape(*lead, heads, q_len, v.shape[-1]).swapaxes(-3, -2)


def _few(q_len: int, kv_len: int) -> bool:
  """Whether XLA makes a slow loop of so few queries on a CPU.

  It does if each head's queries are a matrix of their own.
  """
  return 8 * q_len <= kv_len


def _dot(spec: str, x: Array, y: Array) -> Array:
  """Returns an einsum of two arrays, summed in float32."""
  dot = functools.partial(jnp.einsum, spec, preferred_element_type=jnp.float32)
  if x.dtype not in (jnp.bfloat16, jnp.float16):
    return dot(x, y)

  # XLA's compiler for the CPU leaves some of these to a routine that it lacks
  # (jax 0.10.2, a prefill of three rows). The products are the same.
  def widened(x, y):
    return dot(x.astype(jnp.float32), y.astype(jnp.float32))

  return lax.platform_dependent(x, y, cpu=widened, default=dot)


def _value_sum(q, k, v, mask, target) -> Array:
  """Returns the sum of the values each query sees, in float32."""
  if target is not None:
    return flash.flash_attention(
      q, k, v, scale=1.0, mods=(), mask=mask, weigh="ones", target=target
    )[0].astype(jnp.float32)
  batch, q_len, heads, _ = q.shape
  shape = (batch, heads, q_len, k.shape[1])
  visible = jnp.ones(shape, bool)
  if mask is not None:
    visible = mask.dense(*shape[2:], batch=batch, heads=heads)
  return _weigh(visible.astype(jnp.float32), v.astype(jnp.float32))


def _check(q: Array, k: Array, v: Array) -> None:
  checks.same_floats(q=q, k=k, v=v)
  for name, x in (("q", q), ("k", k), ("v", v)):
    if x.ndim < 3 or 0 in x.shape[-2:]:
      raise ValueError(
        f"{name} has shape {x.shape}; it needs at least [length, heads, dim], "
        "the last two not 0"
      )
  *lead, _, heads, dim = q.shape
  if (
    k.ndim != q.ndim
    or [*k.shape[:-3], k.shape[-1]] != [*lead, dim]
    or heads % k.shape[-2]
  ):
    fits = ", ".join(map(str, (*lead, "kv_len", "k_heads", dim)))
    raise ValueError(
      f"k has shape {k.shape}; queries of shape {q.shape} need [{fits}] with "
      f"k_heads that divides {heads}"
    )
  if v.ndim != q.ndim or v.shape[:-2] != k.shape[:-2] or heads % v.shape[-2]:
    fits = ", ".join(map(str, (*k.shape[:-2], "v_heads", "v_dim")))
    raise ValueError(
      f"v has shape {v.shape}; keys of shape {k.shape} need [{fits}] with "
      f"v_heads that divides {heads}"
    )
