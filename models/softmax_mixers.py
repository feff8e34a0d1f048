"""Dot-product attention as a mixer of sequences."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

import attention
from attention import finishes, masks, normalizers, scales, scores
from models import (
  affine_scale,
  attention_cache,
  fewer_projections,
  mixer_base,
  registry,
  sparse_steps,
  taps,
)
from models.finite_mask import FiniteMask

# The normalizers that need no more than scores, or a number a head. "affine"
# is one more: it needs what a token says.
NORMALIZERS = {
  "softmax": normalizers.softmax,
  "softmax_with_sink": normalizers.softmax_with_sink,
  "softplus": normalizers.softplus,
  "reweighted_softplus": normalizers.reweighted_softplus,
  "sigmoid": normalizers.sigmoid,
}
SCALES = ("constant", "log_length", "entropy")


class FullAttention(fewer_projections.FewerProjections):
  """Every token sees all of its segment, or what of it is not after it.

  Attributes:
    attention_scale: factor of the scores; 0 for head_dim ** -0.5.
    attention_soft_cap: scores become cap * tanh(scores / cap); 0 for none.
    normalizer: how scores become weights, a key of NORMALIZERS or "affine".
    normalizer_options: its arguments; of "affine", the fields of
      `affine_scale.AffineScale` that are its own: length, activation, momentum.
    scale_by: "constant", or "log_length" for ln(head_dim) ln(keys seen) in the
      place of `attention_scale`, or "entropy" for sqrt(ln(keys seen) / ln(keys
      seen in training)) times that; see `attention.scales`.
    trained_length: of the rows of training, which "entropy" needs. A token that
      saw as many keys there as it sees now has the constant scale: only tokens
      beyond that length are scaled where `causal`, all of a row if not.
    selective_values: `count`, and `renormalize`, of the values that a step of
      decoding reads (DiffQKV's selective V); all if empty. See
      `attention.apply_top_weights`.
    sparse_decoding: fields of `attention.sparse_decoding.Budget`, the tokens
      that a step of decoding sees (of softmax in `full` alone); all if empty. A
      call with more than one token, as a prefill, sees all.
  """

  attention_scale: float = 0.0
  attention_soft_cap: float = 0.0
  normalizer: str = "softmax"
  normalizer_options: Mapping[str, Any] = FrozenDict()
  scale_by: str = "constant"
  trained_length: int = 0
  selective_values: Mapping[str, Any] = FrozenDict()
  sparse_decoding: Mapping[str, Any] = FrozenDict()

  def init_cache(self, batch: int, length: int) -> mixer_base.Cache:
    """Returns a cache for `length` tokens."""
    keys, values = (
      (self.heads_of(name), self.width_of(name)) for name in ("key", "value")
    )
    cache = attention_cache.empty(
      batch, self._slots(length), keys, values, self.dtype
    )
    return cache | sparse_steps.empty(
      sparse_steps.budget_of(self), cache["keys"]
    )

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: mixer_base.Cache | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, mixer_base.Cache | None]:
    """Mixes tokens; see `SequenceMixer`.

    Raises:
      ValueError: if there is a cache and the mixer is not causal, the cache is
        too short, or an option is not known.
    """
    budget = sparse_steps.budget_of(self)
    q, k, v = self.queries_keys_values(x, positions)
    slots = {
      "normalizer": self._normalizer(x, positions, train),
      "scale": self._scale(x, positions, segments),
    }
    seen = None
    if cache is None:
      k = self.expanded(k, positions)
      slots["mask"] = self._mask(positions, segments)
      slots["score_mods"] = self._score_mods()
    else:
      if not self.causal:
        raise ValueError(
          "cache is given, but causal is False: nothing to decode"
        )
      if segments is None:
        segments = jnp.zeros_like(positions)
      new = attention_cache.Seen(k, v, positions, segments)
      sums = cache.get(sparse_steps.SUMS)
      seen, cache = attention_cache.extend(cache, new, ring=self.local)
      if sums is not None:
        sums = sparse_steps.extended(sums, new, budget)
        cache[sparse_steps.SUMS] = sums
      k, v = self.expanded(seen.keys, seen.positions), seen.values
      slots["mask"] = self._mask_of_cache(new, seen)
      slots["score_mods"] = self._score_mods(positions, seen.positions)
    step = cache is not None and x.shape[1] == 1
    gate = self.gate((self.heads, v.shape[-1]), x, "output")
    finish = () if gate is None else (gate,)
    if step and budget is not None:
      out = sparse_steps.attend(
        q,
        cache,
        positions,
        budget,
        scale=slots["scale"],
        implementation=self.implementation,
      )
      out = _finished(out, finish)
    else:
      values = self._top_values() if step else None
      parts = self._parts(q, k, v, finish, slots, values)
      facts = functools.partial(_facts, q, k, positions, seen, slots["mask"])
      out = taps.with_open_map(self, *parts, facts, scores=True)
    out = self.output(out, x.shape[-1])
    return self.gated(out, x, "projection"), cache

  def _parts(self, q, k, v, finish, slots, top_values=None):
    """What `taps.with_open_map` takes: attention, its map, and the rest."""

    def attend():
      return attention.dot_product_attention(
        q, k, v, finish=finish, implementation=self.implementation, **slots
      )

    def weigh(edit_scores=None):
      return attention.attention_weights(q, k, edit_scores=edit_scores, **slots)

    def apply(weights):
      if top_values is None:
        out = attention.apply_attention_weights(weights, v)
      else:
        out = attention.apply_top_weights(weights, v, **top_values)
      return _finished(out, finish)

    if top_values is not None:
      attend = lambda: apply(weigh())
    return attend, weigh, apply

  def _top_values(self) -> Mapping[str, Any] | None:
    """The options of `attention.apply_top_weights`, None for all values."""
    unknown = {*self.selective_values} - {"count", "renormalize"}
    if unknown:
      raise registry.unknown(
        "option of selective_values", min(unknown), ("count", "renormalize")
      )
    return self.selective_values or None

  def _slots(self, length: int) -> int:
    return length

  def _before(self) -> int | None:
    """How many keys before its own a token sees, None for all."""
    return None

  def _band(self) -> masks.Mask | None:
    """The mask of tokens that are all of one segment."""
    return masks.causal() if self.causal else None

  def _mask(self, positions, segments) -> masks.Mask | None:
    """The mask of a row that is there as a whole.

    Positions of a segment go up by one, so that it is the same in places as in
    positions, and kernels know which tiles are empty before the program runs.
    """
    band = self._band()
    if positions is None and segments is None:
      return band
    if positions is None:
      apart = masks.segments(segments)
    else:
      if segments is None:
        segments = jnp.zeros_like(positions)
      apart = masks.segments(*attention_cache.marked(positions, segments))
    return FiniteMask(apart if band is None else band & apart)

  def _mask_of_cache(self, new, seen) -> masks.Mask:
    """The mask of new tokens among those of the cache, by positions."""
    return FiniteMask(
      masks.positions(new.positions, seen.positions, self._before())
      & masks.segments(new.segments, seen.segments)
    )

  def _score_mods(self, q_positions=None, kv_positions=None):
    mods = []
    if self.attention_soft_cap:
      mods.append(scores.soft_cap(self.attention_soft_cap))
    if self.position_encoding == "alibi":
      slopes = scores.alibi_slopes(self.heads)
      if kv_positions is None:
        mods.append(scores.alibi(slopes, symmetric=not self.causal))
      else:
        places = {"h": slopes, "bq": q_positions, "bk": kv_positions}
        mods.append(scores.function(_alibi, places))
    return mods

  def _normalizer(self, x, positions, train) -> normalizers.Normalizer:
    if self.normalizer == "affine":
      return self._affine()(x, positions, train)
    if self.normalizer not in NORMALIZERS:
      known = (*NORMALIZERS, "affine")
      raise registry.unknown("normalizer", self.normalizer, known)
    make = NORMALIZERS[self.normalizer]
    if self.normalizer == "softmax_with_sink":
      zeros = nn.initializers.zeros
      sink = self.param("sink", zeros, (self.heads,), self.param_dtype)
      make = functools.partial(make, sink)
    return make(**self.normalizer_options)

  def _affine(self) -> affine_scale.AffineScale:
    given = {
      "heads": self.heads,
      "kernel_init": self.kernel_init,
      "dtype": self.dtype,
      "param_dtype": self.param_dtype,
    }
    fields = {f.name for f in dataclasses.fields(affine_scale.AffineScale)}
    own = fields - {*given, "name", "parent"}
    for option in self.normalizer_options:
      if option not in own:
        raise registry.unknown("option of normalizer 'affine'", option, own)
    return affine_scale.AffineScale(
      **given, **self.normalizer_options, name="affine"
    )

  def _scale(self, x, positions, segments) -> float | jax.Array:
    if self.scale_by not in SCALES:
      raise registry.unknown("scale_by", self.scale_by, SCALES)
    constant = self.attention_scale or self.head_dim**-0.5
    if self.scale_by == "constant":
      return constant
    if self.scale_by == "entropy":
      return constant * self._entropy_factor(x, positions, segments)
    if not self.causal:
      raise ValueError(
        "scale_by is 'log_length', which counts the keys before a token; it "
        "needs causal=True"
      )
    # [batch or 1, 1, length]
    positions = self._places(x, positions, segments)
    return scales.log_length(self._keys_seen(positions)[:, None], self.head_dim)

  def _entropy_factor(self, x, positions, segments) -> float | jax.Array:
    """A number, or [batch or 1, 1, length]."""
    if self.trained_length < 2:
      raise ValueError(
        f"trained_length is {self.trained_length}; scale_by='entropy' needs "
        "the length of the rows of training, at least 2"
      )
    if self.causal:
      places = self._places(x, positions, segments)
      seen = self._keys_seen(places)[:, None]
      # What it saw in training, where no place was farther than the last.
      trained = self._keys_seen(jnp.minimum(places, self.trained_length - 1))
      return scales.entropy(seen, trained[:, None], 1)
    # Of one key there is no entropy.
    trained = max(self._at_most(self.trained_length), 2)
    if positions is None and segments is None:
      return scales.entropy(max(self._at_most(x.shape[1]), 2), trained, 1)
    if segments is None:
      segments = jnp.zeros_like(positions)
    if positions is None:
      positions = mixer_base.counted(x)
    mask = masks.segments(*attention_cache.marked(positions, segments))
    batch, length = x.shape[:2]
    return scales.entropy(
      self._at_most(mask.count(length, length, batch=batch)), trained, 1
    )

  def _places(self, x, positions, segments) -> jax.Array:
    """How many tokens of its segment are before each, [batch or 1, length]."""
    if positions is not None:
      return positions
    positions = mixer_base.counted(x)
    if segments is None:
      return positions
    return mixer_base.places_in_segments(positions, segments)

  def _keys_seen(self, positions: jax.Array) -> jax.Array:
    return positions + 1

  def _at_most(self, length: int | jax.Array) -> int | jax.Array:
    """How many of so many tokens one sees that sees both ways."""
    return length


class SlidingAttention(FullAttention):
  """Every token sees those of its segment that are near.

  Attributes:
    window: how many keys a token sees on a side, its own included.
  """

  window: int = 0
  local = True

  def _slots(self, length):
    return min(length, self._checked_window())

  def _before(self):
    return self._checked_window() - 1

  def _band(self):
    before = self._before()
    return masks.sliding_window(before, 0 if self.causal else before)

  def _keys_seen(self, positions):
    return jnp.minimum(positions + 1, self.window)

  def _at_most(self, length):
    both = 2 * self.window - 1
    if isinstance(length, int):
      return min(length, both)
    return jnp.minimum(length, both)

  def _checked_window(self) -> int:
    if self.window < 1:
      raise ValueError(
        f"window is {self.window}; a sliding mixer needs at least 1, the keys "
        "that a token sees, its own included"
      )
    return self.window


def _facts(q, k, positions, seen, mask) -> dict[str, jax.Array]:
  """What edits of a map may want to know, see `edits.Site`."""
  batch, queries, heads, _ = q.shape
  if positions is None:
    positions = mixer_base.counted(q)
  positions = jnp.broadcast_to(positions, (batch, queries))
  if mask is None:
    visible = jnp.ones((1, 1, 1, 1), bool)
  else:
    visible = mask.dense(queries, k.shape[1], batch=batch, heads=heads)
  return {
    "query_positions": positions,
    "key_positions": positions if seen is None else seen.positions,
    "visible": visible,
  }


def _finished(out: jax.Array, finish: tuple[finishes.Finish, ...]) -> jax.Array:
  """Applies gates, which ask for no sum of values."""
  for step in finish:
    out = step.apply(out.astype(jnp.float32), None).astype(out.dtype)
  return out


def _alibi(score, batch, head, q_index, k_index, slope, q_position, k_position):
  """The linear bias of positions that are not those of the slots."""
  return score + slope * (k_position - q_position).astype(jnp.float32)
