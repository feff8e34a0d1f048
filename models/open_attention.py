"""Attention of a module, in the open where somebody reads or edits its map.

`taps.with_open_map` takes attention as a whole and in halves; here are the
halves of what most modules have, softmax attention with slots and attention in
linear time.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from models import taps


def dot_product(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  implementation: str,
  **slots: Any,
) -> jax.Array:
  """`attention.dot_product_attention` with its scores and its map as taps.

  Args:
    module: whose values "attention_scores", "attention_weights" and
      "head_outputs" they are.
    q: queries [batch, q_len, heads, dim].
    k: keys [batch, kv_len, key heads, dim].
    v: values [batch, kv_len, value heads, v_dim].
    implementation: of attention whose map nobody asks for.
    **slots: what `attention.attention_weights` takes besides.

  Returns:
    [batch, q_len, heads, v_dim].
  """

  def attend():
    return attention.dot_product_attention(
      q, k, v, implementation=implementation, **slots
    )

  def weigh(edit_scores=None):
    return attention.attention_weights(q, k, edit_scores=edit_scores, **slots)

  def apply(weights):
    return attention.apply_attention_weights(weights, v)

  return taps.with_open_map(module, attend, weigh, apply, scores=True)


def linear(
  module: nn.Module,
  attend: Callable[..., jax.Array],
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  implementation: str,
) -> jax.Array:
  """Attention in linear time, which never has a map, with its map as a tap.

  Args:
    module: whose values "attention_weights" and "head_outputs" they are.
    attend: attention that is linear in values, of q, k, v and a keyword
      `implementation`.
    q: queries [batch, q_len, heads, dim].
    k: keys [batch, kv_len, heads, dim].
    v: values [batch, kv_len, heads, v_dim].
    implementation: of attention whose map nobody asks for.

  Returns:
    [batch, q_len, heads, v_dim].
  """

  def weigh():
    wide_q, wide_k = (x.astype(jnp.float32) for x in (q, k))
    one = jnp.eye(k.shape[1])[None, :, None]
    one = jnp.broadcast_to(one, (*k.shape[:3], k.shape[1]))
    # [batch, queries, heads, keys]: of one value for each key what comes out is
    # the weights.
    weights = attend(wide_q, wide_k, one, implementation="xla")
    return weights.swapaxes(1, 2)

  return taps.with_open_map(
    module,
    lambda: attend(q, k, v, implementation=implementation),
    weigh,
    lambda weights: attention.apply_attention_weights(weights, v),
  )
