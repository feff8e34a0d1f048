"""Scaled dot-product attention, the definition every kernel must equal."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dot_product_attention(
  q: Float[Array, "*batch q_len heads dim"],
  k: Float[Array, "*batch kv_len heads dim"],
  v: Float[Array, "*batch kv_len heads v_dim"],
  *,
  bias: Float[Array, "..."] | None = None,
  scale: float | None = None,
) -> Float[Array, "*batch q_len heads v_dim"]:
  """Returns `softmax(scale * q k^T + bias) v`, head by head.

  Equation 1 of "Attention Is All You Need" (arXiv 1706.03762) with an additive
  bias, in the conventions of `jax.nn.dot_product_attention`, but with any
  number of leading axes, so that windows are just another batch axis. Scores,
  softmax and accumulation are float32 whatever the dtype of the inputs.

  Args:
    q: queries [..., q_len, heads, dim].
    k: keys [..., kv_len, heads, dim].
    v: values [..., kv_len, heads, v_dim].
    bias: added to the scaled scores before the softmax; anything that
      broadcasts to [..., heads, q_len, kv_len].
    scale: factor of the scores; dim ** -0.5 if None.

  Returns:
    [..., q_len, heads, v_dim] in the dtype of `q`.

  Raises:
    ValueError: if the shapes of `q`, `k`, `v` and `bias` do not agree.
  """
  weights = attention_weights(q, k, bias=bias, scale=scale)
  return apply_attention_weights(weights, v).astype(q.dtype)


def attention_weights(
  q: Float[Array, "*batch q_len heads dim"],
  k: Float[Array, "*batch kv_len heads dim"],
  *,
  bias: Float[Array, "..."] | None = None,
  scale: float | None = None,
) -> Float[Array, "*batch heads q_len kv_len"]:
  """Returns `softmax(scale * q k^T + bias)` in float32: the attention map.

  Arguments and errors are those of `dot_product_attention`. With
  `apply_attention_weights` it is the way to look at or to edit the map.
  """
  _check_keys(q, k)
  scores = jnp.einsum(
    "...qhd,...khd->...hqk", q, k, preferred_element_type=jnp.float32
  )
  scores *= q.shape[-1] ** -0.5 if scale is None else scale
  if bias is not None:
    scores += _expand_bias(bias, scores.shape)
  return jax.nn.softmax(scores, axis=-1)


def apply_attention_weights(
  weights: Float[Array, "*batch heads q_len kv_len"],
  v: Float[Array, "*batch kv_len heads v_dim"],
) -> Float[Array, "*batch q_len heads v_dim"]:
  """Returns `weights v`, accumulated in float32, in the dtype of `v`.

  Args:
    weights: attention map [..., heads, q_len, kv_len].
    v: values [..., kv_len, heads, v_dim].

  Raises:
    ValueError: if the shapes of `weights` and `v` do not agree.
  """
  expected = (*v.shape[:-3], v.shape[-2], v.shape[-3])
  if (*weights.shape[:-2], weights.shape[-1]) != expected:
    raise ValueError(
      f"v has shape {v.shape}; weights of shape {weights.shape} need values "
      "[..., kv_len, heads, v_dim] with the same leading axes, heads and kv_len"
    )
  # The product runs in the dtype of the values: that is what matrix units want.
  out = jnp.einsum(
    "...hqk,...khd->...qhd",
    weights.astype(v.dtype),
    v,
    preferred_element_type=jnp.float32,
  )
  return out.astype(v.dtype)


def _check_keys(q: Array, k: Array) -> None:
  if q.ndim < 3:
    raise ValueError(
      f"q has shape {q.shape}; it needs at least [q_len, heads, dim]"
    )
  fits = (*q.shape[:-3], "kv_len", *q.shape[-2:])
  if k.ndim != q.ndim or any(
    have != want
    for have, want in zip(k.shape, fits, strict=True)
    if want != "kv_len"
  ):
    raise ValueError(
      f"k has shape {k.shape}; queries of shape {q.shape} need "
      f"[{', '.join(map(str, fits))}]"
    )


def _expand_bias(bias: Array, shape: tuple[int, ...]) -> Array:
  """Adds the leading axes that implicit rank promotion would add."""
  padded = (1,) * (len(shape) - bias.ndim) + bias.shape
  if len(padded) != len(shape) or any(
    have not in (1, want) for have, want in zip(padded, shape, strict=True)
  ):
    raise ValueError(
      f"bias has shape {bias.shape}; it must broadcast to "
      f"[..., heads, q_len, kv_len] = {shape}"
    )
  return bias.reshape(padded).astype(jnp.float32)
