"""What mixers of sequences have in common: queries, keys, values, output."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from models import layers, normalization, positions, registry

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
    qk_norm: makes the normalisation of the heads of queries and keys; "unit"
      divides them by their length, so that scores are cosines; None or False
      for none.
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
  qk_norm: Callable[..., nn.Module] | str | bool | None = None
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

  def heads_of(self, name: str) -> int:
    """How many heads there are of "query", "key" or "value".

    Raises:
      ValueError: if they do not divide `heads`.
    """
    return self.heads if name == "query" else self.divisor("kv_heads")

  def width_of(self, name: str) -> int:
    """Channels of a head of "query", "key" or "value", as projected."""
    del name
    return self.head_dim

  def divisor(self, field: str) -> int:
    """Returns the number of heads in a field, `heads` if it is 0.

    Raises:
      ValueError: if it does not divide `heads`.
    """
    number = getattr(self, field)
    if number < 0 or self.heads % (number or self.heads):
      fits = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
      raise ValueError(
        f"{field} is {number}; for heads={self.heads} it must be one of {fits}"
      )
    return number or self.heads

  def queries_keys_values(
    self, x: jax.Array, places: jax.Array | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Projects to [batch, length, heads_of(name), width_of(name)] each."""
    q, k, v = (self.project(x, name) for name in ("query", "key", "value"))
    places = counted(x) if places is None else places
    return self.placed(q, "query", places), self.placed(k, "key", places), v

  def project(self, x: jax.Array, name: str) -> jax.Array:
    """Projects to [batch, length, heads_of(name), width_of(name)]."""
    return self._dense((self.heads_of(name), self.width_of(name)), name)(x)

  def placed(self, heads: jax.Array, name: str, places: jax.Array) -> jax.Array:
    """Normalises heads of queries or keys, and turns them to their places."""
    if self.qk_norm:
      heads = self._heads_norm()(name=f"{name}_norm")(heads)
    if self.position_encoding == "rotary":
      heads = positions.rotate(heads, places, self.rotary, local=self.local)
    return heads

  def gate_logits(self, x: jax.Array) -> jax.Array | None:
    """Returns [batch, length, heads, channels or nothing], None for no gate."""
    if self.output_gate not in GATES:
      raise registry.unknown("output_gate", self.output_gate, GATES)
    if self.output_gate == "none":
      return None
    if self.output_gate == "headwise":
      return self._dense((self.heads,), "gate")(x)
    return self._dense((self.heads, self.width_of("value")), "gate")(x)

  def output(self, heads: jax.Array, width: int) -> jax.Array:
    """Projects [batch, length, heads, channels] to [batch, length, width]."""
    return layers.DenseGeneral(
      width,
      axis=(-2, -1),
      use_bias=self.out_bias,
      kernel_init=self.out_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="out",
    )(heads)

  def _heads_norm(self) -> Callable[..., nn.Module]:
    if self.qk_norm == "unit":
      return functools.partial(normalization.UnitNorm, dtype=self.dtype)
    if not callable(self.qk_norm):
      raise ValueError(
        f"qk_norm is {self.qk_norm!r}; it must be 'unit' or False, or be left "
        "to the model, whose qk_norm=True takes the model's norm"
      )
    return self.qk_norm

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
