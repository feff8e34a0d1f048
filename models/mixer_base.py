"""What mixers of sequences have in common: queries, keys, values, output."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from models import layers, positions, registry

Cache = dict[str, jax.Array]
GATES = ("none", "elementwise", "headwise")


class SequenceMixer(nn.Module):
  """Projections to heads and back; a subclass says what lies between.

  Its call is `mixer(x, positions, segments, cache, train)`, with
  x: [batch, length, width];
  positions: integers [batch, length], -1 for padding, which is not between
    tokens of a row; those of a segment go up by one. None: 0, 1, 2, ...;
  segments: integers [batch, length], tokens see those of their own; or None;
  cache: what `init_cache` or an earlier call gave, or None;
  and it returns [batch, length, width] and the new cache, None if there was
  none.

  Attributes:
    heads: query heads.
    head_dim: channels of a head.
    kv_heads: heads of keys and values, a divisor of `heads`; 0 for as many.
    causal: whether a token sees only itself and what is before it.
    position_encoding: "rotary" turns queries and keys; "alibi" is for mixers
      that have scores; others mean nothing to a mixer.
    rotary: see `positions.rotate`.
    qk_norm: makes the normalisation of the heads of queries and keys; None for
      none.
    output_gate: what the heads' output is multiplied by before the projection:
      "none", or the sigmoid of a projection of `x`, to each channel
      ("elementwise") or to each head ("headwise"): G1 of arXiv 2505.06708.
    attention_bias: whether queries, keys, values and gates have biases.
    out_bias: whether the output has one.
    kernel_init: initializer of what reads the residual stream.
    out_init: initializer of what writes to it.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    dtype: dtype of the computation; softmax and memories are float32.
    param_dtype: dtype of the parameters.
  """

  heads: int
  head_dim: int
  kv_heads: int = 0
  causal: bool = True
  position_encoding: str = "none"
  rotary: Mapping[str, Any] = FrozenDict()
  qk_norm: Callable[..., nn.Module] | None = None
  output_gate: str = "none"
  attention_bias: bool = False
  out_bias: bool = False
  kernel_init: layers.Initializer = nn.initializers.normal(0.02)
  out_init: layers.Initializer = nn.initializers.normal(0.02)
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  # Whether it sees near tokens only, so that `rotary` may have another base.
  local = False

  def init_cache(self, batch: int, length: int) -> Cache:
    """Returns the cache before the first of at most `length` tokens.

    A function of the fields alone: the mixer needs no parameters for it.
    """
    raise NotImplementedError

  @property
  def key_heads(self) -> int:
    """Heads of keys and values.

    Raises:
      ValueError: if they do not divide `heads`.
    """
    kv_heads = self.kv_heads or self.heads
    if kv_heads < 1 or self.heads % kv_heads:
      fits = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
      raise ValueError(
        f"kv_heads is {self.kv_heads}; for heads={self.heads} it must be one "
        f"of {fits}"
      )
    return kv_heads

  def queries_keys_values(
    self, x: jax.Array, places: jax.Array | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Projects to [batch, length, heads or kv_heads, head_dim] each."""
    q, k, v = self.projected(x)
    return (*self.placed(q, k, places), v)

  def projected(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries, keys and values that know no positions."""
    into = functools.partial(self._into_heads, x)
    q = into(self.heads, "query")
    k = into(self.key_heads, "key")
    v = into(self.key_heads, "value")
    if self.qk_norm is not None:
      q, k = (
        self.qk_norm(name="query_norm")(q),
        self.qk_norm(name="key_norm")(k),
      )
    return q, k, v

  def placed(
    self, q: jax.Array, k: jax.Array, places: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    """Turns queries and keys by their positions, if these are rotary."""
    if self.position_encoding == "rotary":
      places = counted(q) if places is None else places
      q, k = (
        positions.rotate(heads, places, self.rotary, local=self.local)
        for heads in (q, k)
      )
    return q, k

  def gate_logits(self, x: jax.Array) -> jax.Array | None:
    """Returns [batch, length, heads, head_dim or nothing], None for no gate."""
    if self.output_gate not in GATES:
      raise registry.unknown("output_gate", self.output_gate, GATES)
    if self.output_gate == "none":
      return None
    if self.output_gate == "headwise":
      return self._dense((self.heads,), "gate")(x)
    return self._into_heads(x, self.heads, "gate")

  def output(self, heads: jax.Array, width: int) -> jax.Array:
    """Projects [batch, length, heads, head_dim] to [batch, length, width]."""
    return layers.DenseGeneral(
      width,
      axis=(-2, -1),
      use_bias=self.out_bias,
      kernel_init=self.out_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="out",
    )(heads)

  def _into_heads(self, x: jax.Array, heads: int, name: str) -> jax.Array:
    return self._dense((heads, self.head_dim), name)(x)

  def _dense(self, features: tuple[int, ...], name: str) -> nn.Module:
    return layers.DenseGeneral(
      features,
      use_bias=self.attention_bias,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name=name,
    )


def counted(x: jax.Array) -> jax.Array:
  """Returns the positions 0, 1, 2, ... of `x`, [1, length]."""
  return jnp.arange(x.shape[1], dtype=jnp.int32)[None, :]
