"""What mixers of sequences have in common: queries, keys, values, output."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from attention import finishes
from models import layers, normalization, positions, registry, taps

Cache = dict[str, jax.Array]
GATES = ("none", "elementwise", "headwise", "shared", "input_independent")
# G4, G3, G2, G1 and G5 of arXiv 2505.06708.
GATE_POSITIONS = ("query", "key", "value", "output", "projection")


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
    output_gate: what the heads' output is multiplied by before the projection,
      "Gated Attention" (arXiv 2505.06708): "none", or the sigmoid of a
      projection of `x`, to each channel ("elementwise"), to each head
      ("headwise"), or to each channel and then averaged over heads ("shared");
      or of a parameter for each channel that begins at 0 ("input_independent").
    gate_position: where it is instead, one of GATE_POSITIONS: "query", "key" or
      "value", between their projections and what follows, norms of heads and
      rotation (the order is ours); "output"; or "projection", after that of the
      output, where there are no heads any more.
    gate_activation: what is in the place of the sigmoid, a key of
      `finishes.ACTIVATIONS`; float32.
    gate_operation: "multiply", or "add" for what is added instead.
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
  gate_position: str = "output"
  gate_activation: str = "sigmoid"
  gate_operation: str = "multiply"
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
    names = ("query", "key", "value")
    q, k, v = (
      self.gated(heads, x, name)
      for name, heads in zip(names, self.projected(x), strict=True)
    )
    places = counted(x) if places is None else places
    q, k = self.placed(q, "query", places), self.placed(k, "key", places)
    return self.seen(q, k, v)

  def seen(
    self, q: jax.Array, k: jax.Array, v: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries, keys and values as they enter attention, as tapped."""
    names = ("queries", "keys", "values")
    q, k, v = map(functools.partial(taps.tap, self), names, (q, k, v))
    return q, k, v

  def projected(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries, keys and values before gates, norms and rotation."""
    q, k, v = (self.project(x, name) for name in ("query", "key", "value"))
    return q, k, v

  def project(self, x: jax.Array, name: str) -> jax.Array:
    """Projects to [batch, length, heads_of(name), width_of(name)]."""
    return self._dense((self.heads_of(name), self.width_of(name)), name)(x)

  def placed(self, heads: jax.Array, name: str, places: jax.Array) -> jax.Array:
    """Normalises heads of queries or keys, and turns them to their places."""
    return self.turned(self.normalised(heads, name), places)

  def normalised(self, heads: jax.Array, name: str) -> jax.Array:
    """Normalises heads of "query" or "key", if `qk_norm` says so."""
    if not self.qk_norm:
      return heads
    return self._heads_norm()(name=f"{name}_norm")(heads)

  def turned(self, heads: jax.Array, places: jax.Array) -> jax.Array:
    """Turns heads to their places, if positions are rotary."""
    if self.position_encoding != "rotary":
      return heads
    return positions.rotate(heads, places, self.rotary, local=self.local)

  def gate(
    self, shape: tuple[int, ...], x: jax.Array, position: str
  ) -> finishes.Finish | None:
    """Returns the gate of `position`, or None if there is none.

    Args:
      shape: (heads, channels) of what it is for, or (width,).
      x: [batch, length, width], what decides it: the normalised input.
      position: one of GATE_POSITIONS.

    Raises:
      ValueError: if a field of the gate is not known, or it is for heads where
        there are none.
    """
    for field, known in (
      ("output_gate", GATES),
      ("gate_position", GATE_POSITIONS),
      ("gate_activation", finishes.ACTIVATIONS),
      ("gate_operation", finishes.OPERATIONS),
    ):
      if getattr(self, field) not in known:
        raise registry.unknown(field, getattr(self, field), known)
    if self.output_gate == "none" or self.gate_position != position:
      return None
    if self.output_gate in ("headwise", "shared") and len(shape) == 1:
      raise ValueError(
        f"output_gate is {self.output_gate!r}, for heads, and after the "
        "projection of the output (gate_position='projection') there are none; "
        "'elementwise' and 'input_independent' fit"
      )
    logits = self._gate_logits(shape, x)
    make = functools.partial(finishes.gate, operation=self.gate_operation)
    shared = self.output_gate == "shared"
    if not (shared or taps.tapped(self, "gate_values")):
      return make(logits, activation=self.gate_activation)
    values = finishes.ACTIVATIONS[self.gate_activation](
      logits.astype(jnp.float32)
    )
    if shared:
      values = values.mean(2, keepdims=True)
    values = taps.tap(self, "gate_values", values)
    return make(values, activation="identity")

  def gated(self, values: jax.Array, x: jax.Array, position: str) -> jax.Array:
    """Returns [batch, length, ...] with the gate of `position`; see `gate`."""
    gate = self.gate(values.shape[2:], x, position)
    if gate is None:
      return values
    # A gate asks for no sum of values.
    out = gate.apply(values.astype(jnp.float32), None)
    return out.astype(values.dtype)

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

  def _gate_logits(self, shape: tuple[int, ...], x: jax.Array) -> jax.Array:
    """[batch or 1, length or 1, *shape], without channels for "headwise"."""
    if self.output_gate == "input_independent":
      zeros = nn.initializers.zeros
      return self.param("gate", zeros, shape, self.param_dtype)[None, None]
    shape = shape[:1] if self.output_gate == "headwise" else shape
    return self._dense(shape, "gate")(x)

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


def places_in_segments(places: jax.Array, segments: jax.Array) -> jax.Array:
  """Returns how many tokens of its segment are before each, [batch, length]."""
  first = jnp.ones_like(segments[:, :1], bool)
  first = jnp.concatenate([first, segments[:, 1:] != segments[:, :-1]], axis=1)
  starts = jnp.where(first, places, 0)
  return places - jax.lax.cummax(starts, axis=1)
