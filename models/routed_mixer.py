"""Attention that a router makes full or streaming, a choice for each row."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from attention import masks
from models import attention_cache, mixer_base, router, taps
from models.finite_mask import FiniteMask
from models.softmax_mixers import FullAttention

# Options of `full` that would ask for the choice of each row, or for all keys.
_REFUSED = ("scale_by", "key_dim", "selective_values", "sparse_decoding")
# More keys before its own than any token has.
_FAR = 2**29 - 1


class RoutedAttention(FullAttention):
  """A row sees all that is before a token, or its first and its near tokens.

  "Flux Attention" (arXiv 2604.07394), whose router is `models.router.Router`.
  A token of a streaming row sees the keys at positions below `sink_tokens`, and
  `window` keys, its own included; the reference's kernel rounds both up to
  blocks of 128, this does not. There is one choice for a row and layer, that of
  all its documents if it has several. In a cache it is taken from the first
  tokens of the row that come, and stays; the cache has room for all tokens
  whatever it is, but where no row is full a call reads the first and the near
  keys alone.

  It begins as full attention. `models.router.routing` says which tokens decide,
  all by default, and in training the temperature at which routers draw: then
  both are computed, and mixed by the choice.

  Attributes:
    window: how many keys a token of a streaming row sees, its own included.
    sink_tokens: how many of the first positions it sees as well.
    pooled_tokens: how many first and how many last queries are asked.
  """

  window: int = 0
  sink_tokens: int = 128
  pooled_tokens: int = 100
  # For `models.router.routing`.
  routed = True

  def init_cache(self, batch: int, length: int) -> mixer_base.Cache:
    """Returns a cache for `length` tokens, in which no choice is taken."""
    cache = super().init_cache(batch, length)
    return {**cache, "route": jnp.full((batch,), -1, jnp.int32)}

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: mixer_base.Cache | None = None,
    train: bool = False,
    *,
    prompt: jax.Array | None = None,
    temperature: jax.Array | float | None = None,
  ) -> tuple[jax.Array, mixer_base.Cache | None]:
    """Mixes tokens; see `SequenceMixer`, and `models.router.routing`.

    Raises:
      ValueError: if the mixer is not causal, the cache is too short, an option
        does not fit, or there are a temperature and a cache.
    """
    self._check(cache, temperature)
    names = ("query", "key", "value")
    q, k, v = (
      self.gated(heads, x, name)
      for name, heads in zip(names, self.projected(x), strict=True)
    )
    q = self.normalised(q, "query")
    kept = _kept(prompt, positions)
    if cache is None:
      route = self._choice(self._router(), q, kept, temperature)
    else:
      route = self._lasting_choice(q, kept, cache["route"])
    # 1 for full attention, 0 for streaming; -1 where no token could decide yet.
    route = taps.tap(self, "route", route)
    places = mixer_base.counted(x) if positions is None else positions
    q, k = self.turned(q, places), self.placed(k, "key", places)
    q, k, v = self.seen(q, k, v)
    slots = {
      "normalizer": self._normalizer(x, positions, train),
      "scale": self._scale(x, positions, segments),
    }
    gate = self.gate((self.heads, v.shape[-1]), x, "output")
    finish = () if gate is None else (gate,)

    def parts(keys, values, mask, kv_positions=None):
      both = () if kv_positions is None else (positions, kv_positions)
      own = {"mask": mask, "score_mods": self._score_mods(*both)}
      return self._parts(q, keys, values, finish, {**slots, **own})

    if cache is None:
      of_mask = functools.partial(parts, k, v)
      how = self._of_row(of_mask, positions, segments, route, temperature)
    else:
      if segments is None:
        segments = jnp.zeros_like(positions)
      new = attention_cache.Seen(k, v, positions, segments)
      how, cache = self._of_cache(parts, new, cache, route)
    out = self.output(taps.with_open_map(self, *how), x.shape[-1])
    return self.gated(out, x, "projection"), cache

  def _router(self) -> router.Router:
    return router.Router(self.param_dtype, name="router")

  def _choice(self, choose, q, kept, temperature) -> jax.Array:
    """Returns float32 [batch]."""
    logits = choose(router.pooled(q, kept, self.pooled_tokens))
    if temperature is None:
      return (logits.argmax(-1) == router.FULL).astype(jnp.float32)
    key = self.make_rng("routing")
    return router.straight_through(logits, key, temperature)

  def _lasting_choice(self, q, kept, before) -> jax.Array:
    """What rows chose before, or choose now that they have first tokens."""
    now = (before < 0) & kept.any(axis=1)
    before = before.astype(jnp.float32)
    return nn.cond(
      now.any(),
      lambda choose: jnp.where(
        now, self._choice(choose, q, kept, None), before
      ),
      lambda choose: before,
      self._router(),
    )

  def _of_row(self, parts, positions, segments, route, temperature):
    """What `taps.with_open_map` takes, for a row that is there as a whole."""
    every = self._mask(positions, segments)
    first = self._first_keys(positions, positions)

    def streaming(before):
      near = masks.sliding_window(before)
      return parts(FiniteMask(every & (near | first)))

    full, stream = parts(every), streaming(self.window - 1)
    if temperature is not None:
      return (
        lambda: _mixed(route, full[0](), stream[0]()),
        lambda: _mixed(route, full[1](), stream[1]()),
        full[2],
      )
    each = streaming(self._reach(route))
    if len(route) > 1:
      return each
    # Masks that are known before the program runs.
    return lambda: lax.cond(route[0] > 0, full[0], stream[0]), *each[1:]

  def _of_cache(self, parts, new, cache, route):
    """Likewise, for tokens that are written to a cache, and the new cache."""
    seen, written = attention_cache.extend(cache, new, ring=False)
    written["route"] = route.astype(jnp.int32)

    def of(seen):
      near = masks.positions(new.positions, seen.positions, self._reach(route))
      first = self._first_keys(new.positions, seen.positions)
      mask = FiniteMask(self._mask_of_cache(new, seen) & (near | first))
      return parts(seen.keys, seen.values, mask, seen.positions)

    whole = of(seen)
    slots = seen.positions.shape[1]
    # Several tokens may be of several segments, which begin at several slots.
    if new.positions.shape[1] > 1 or self.sink_tokens + self.window >= slots:
      return whole, written
    full = ((route > 0) & (new.positions[:, 0] >= 0)).any()

    def attend():
      few = of(_near(written, new.positions, self.sink_tokens, self.window))
      return lax.cond(full, whole[0], few[0])

    return (attend, *whole[1:]), written

  def _reach(self, route: jax.Array) -> jax.Array:
    """How many keys before its own each row sees, int32 [batch]."""
    return jnp.where(route > 0, _FAR, self.window - 1)

  def _first_keys(self, q_positions, kv_positions) -> masks.Mask:
    """The mask of the keys that all tokens see; of all documents."""
    if kv_positions is None:
      return masks.prefix(self.sink_tokens)
    return masks.segments(
      jnp.zeros_like(q_positions),
      jnp.where(kv_positions < self.sink_tokens, 0, 1),
    )

  def _check(self, cache, temperature) -> None:
    if not self.causal:
      raise ValueError("causal is False; a routed mixer needs causal=True")
    for field, least in (
      ("window", 1),
      ("sink_tokens", 0),
      ("pooled_tokens", 1),
    ):
      if getattr(self, field) < least:
        raise ValueError(
          f"{field} is {getattr(self, field)}; a routed mixer needs at least "
          f"{least}"
        )
    for field in _REFUSED:
      if (value := getattr(self, field)) != getattr(FullAttention, field):
        raise ValueError(
          f"{field} is {value!r}; a routed mixer needs "
          f"{getattr(FullAttention, field)!r}"
        )
    if cache is not None and temperature is not None:
      raise ValueError(
        f"temperature is {temperature} and there is a cache; routers draw "
        "where a row is there as a whole, so leave out one of them"
      )


def _kept(prompt, positions) -> jax.Array | None:
  """The tokens that decide, bool [batch, length]; None for all."""
  if positions is None or prompt is None:
    return prompt if positions is None else positions >= 0
  return prompt & (positions >= 0)


def _mixed(route, full, stream) -> jax.Array:
  """Mixes arrays [batch, ., ., .] by the choice of each row."""
  route = route[:, None, None, None]
  mixed = route * full.astype(jnp.float32)
  mixed += (1 - route) * stream.astype(jnp.float32)
  return mixed.astype(full.dtype)


def _near(cache, positions, sink_tokens, window) -> attention_cache.Seen:
  """The first and the last slots of a cache, as a step of decoding reads them.

  Args:
    cache: after the step.
    positions: [batch, 1], of its tokens.
    sink_tokens: how many slots from the first of each row's segment on.
    window: how many last slots, none of which is there twice.
  """
  slots = cache["positions"].shape[1]
  last = cache["index"] - 1
  begin = jnp.clip(last + 1 - window, 0, slots - window)
  # A row's tokens are neighbours, so that position 0 is that many slots before.
  first = jnp.clip(last - positions[:, 0], 0, slots - sink_tokens)

  def read(name, axis):
    x = cache[name]
    near = lax.dynamic_slice_in_dim(x, begin, window, axis)
    of_row = functools.partial(
      lax.dynamic_slice_in_dim, slice_size=sink_tokens, axis=axis - 1
    )
    return jnp.concatenate([jax.vmap(of_row)(x, first), near], axis)

  held = {"keys": 2, "values": 2, "positions": 1, "segments": 1}
  held = {name: read(name, axis) for name, axis in held.items()}
  twice = first[:, None] + jnp.arange(sink_tokens)[None, :] >= begin
  twice = jnp.pad(twice, ((0, 0), (0, window)))
  return attention_cache.Seen(
    held["keys"].swapaxes(1, 2),
    held["values"].swapaxes(1, 2),
    jnp.where(twice, -1, held["positions"]),
    held["segments"],
  )
