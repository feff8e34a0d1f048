"""Attention to the last states of a stream, with a bias for each lag."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import masks, scores
from models import layers, open_attention

State = dict[str, jax.Array]


class LagAttention(nn.Module):
  """Causal heads that see `window` states, the newest included.

    scores = q k / sqrt(dim) + bias[head, lag],  0 <= lag < window

  The learned number of a lag is "multi-head attention with relative positional
  bias" as arXiv 2410.02654 names it; its form could not be read and is ours.

  Attributes:
    heads: of the attention.
    window: how many states a query sees.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    dtype: dtype of the products.
    param_dtype: dtype of the parameters.
  """

  heads: int
  window: int
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, valid: jax.Array, state: State | None
  ) -> tuple[jax.Array, State | None]:
    """Attends.

    Args:
      x: [batch, time, width].
      valid: bool [batch, time], which places there are; others are not seen.
      state: keys and values of the times before, see `empty`; None for none.

    Returns:
      (out, state): an array like `x`, and what the next call goes on from; None
      if no state was given.
    """
    width = x.shape[-1]
    q, k, v = (
      layers.DenseGeneral(
        (self.heads, width // self.heads),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=name,
      )(x)
      for name in ("query", "key", "value")
    )
    past = 0
    if state is not None:
      past = self.window - 1
      k, v, valid, state = self._joined(k, v, valid, state)
    slots = self._slots(q, k, valid, past)
    out = open_attention.dot_product(
      self, q, k, v, implementation=self.implementation, **slots
    )
    out = layers.DenseGeneral(
      width,
      axis=(-2, -1),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="out",
    )(out)
    return out, state

  def _joined(self, k, v, valid, state):
    """Keys, values and their places with those before; the state after."""
    batch, past = k.shape[0], self.window - 1
    # [batch, past + time, ...]
    keys, values = (
      jnp.concatenate([state[name].reshape(batch, past, *x.shape[2:]), x], 1)
      for name, x in (("keys", k.astype(jnp.float32)), ("values", v))
    )
    valid = jnp.concatenate([state["valid"] > 0.5, valid], axis=1)
    last = keys.shape[1] - past
    after = {
      "keys": keys[:, last:].reshape(batch, past, -1),
      "values": values[:, last:].astype(jnp.float32).reshape(batch, past, -1),
      "valid": valid[:, last:].astype(jnp.float32),
    }
    return keys.astype(k.dtype), values.astype(v.dtype), valid, after

  def _slots(self, q, k, valid, past):
    """Biases of the lags, and the mask of what is seen."""
    table = self.param(
      "bias",
      nn.initializers.zeros,
      (self.heads, self.window),
      self.param_dtype,
    )
    # The place of each query among the keys, and how far it is from each.
    queries = past + jnp.arange(q.shape[1])
    places = jnp.arange(k.shape[1])
    lags = jnp.clip(queries[:, None] - places[None], 0, self.window - 1)
    # [batch, keys]; a negative place is seen by nobody.
    places = jnp.where(valid, places[None], -1)
    queries = jnp.broadcast_to(queries[None], (q.shape[0], q.shape[1]))
    return {
      "score_mods": (scores.bias(table.astype(jnp.float32)[:, lags]),),
      "mask": masks.positions(queries, places, self.window - 1),
    }

  @staticmethod
  def empty(batch: int, window: int, width: int) -> State:
    """The state before anything was seen.

    Arrays are float32, so that a train state can keep them: keys and values
    [batch, window - 1, width], and valid [batch, window - 1], one where
    something is.
    """
    shape = (batch, window - 1, width)
    return {
      "keys": jnp.zeros(shape, jnp.float32),
      "values": jnp.zeros(shape, jnp.float32),
      "valid": jnp.zeros(shape[:2], jnp.float32),
    }


def check(heads: int, width: int, window: int) -> None:
  """Raises `ValueError` for numbers that do not fit each other."""
  if heads < 1 or width % heads:
    raise ValueError(f"heads is {heads}, which does not divide width {width}")
  if window < 1:
    raise ValueError(f"window is {window}; a query sees at least itself, so 1")
