"""Edits that act on sinks, in one pass and in decoding with a cache.

For `interpret.run` and `interpret.edited`, at "layer_*/mixer/attention_weights"
of language models. What they know of earlier tokens is in the cache, by its
slots, so that a token is looked at in the call that brings it. With the caches
of sliding windows prompts have to come token by token.
"""

import dataclasses

import jax
import jax.numpy as jnp

from interpret import attention_calibration, attention_redistribution
from models import image_places, taps

PATTERN = "layer_*/mixer/attention_weights"


@dataclasses.dataclass(frozen=True)
class _ImageSinks(taps.StatefulEdit):
  """Finds the sinks of what enters a layer, of every token when it comes.

  Where a row's image is, the model says: `image_places.SPAN`.

  Attributes:
    dimensions: channels that are large in sinks.
    threshold: the paper's tau.
    at_random: a control, as many other image tokens in the place of those of
      the image that are sinks; `site.given["draw"]`, an integer, seeds it.
  """

  dimensions: tuple[int, ...]
  threshold: float
  at_random: bool = False

  def init(self, value: jax.Array, site: taps.Site) -> jax.Array:
    """No slot of the cache has a sink, bool [batch, keys]."""
    del site
    return jnp.zeros((value.shape[0], value.shape[-1]), bool)

  def __call__(
    self, value: jax.Array, site: taps.Site, state: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns weights, and which slots have sinks."""
    own = _own(value, site, state.shape[-1])
    queries = site.facts["query_positions"]
    span = site.value(image_places.SPAN)
    in_image = image_places.within(queries, span)
    found = attention_redistribution.sink_mask(
      site.value("input_state"), self.dimensions, self.threshold
    )
    if self.at_random:
      drawn = _drawn(found & in_image, in_image, site)
      found = jnp.where(in_image, drawn, found)
    new = (own & found[:, :, None]).any(axis=1)
    sinks = jnp.where(own.any(axis=1), new, state)
    image = image_places.within(site.facts["key_positions"], span)
    changed = self._changed(value, image, sinks, (queries >= 0) & ~in_image)
    return changed, sinks

  def _changed(self, weights, image, sinks, queries) -> jax.Array:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Redistribution(_ImageSinks):
  """Visual attention redistribution, `attention_redistribution.redistribute`.

  Text queries are those behind the image or before it. The paper leaves the
  last layer as it is, and the released code the first two: say so by the
  pattern, as "layer_[1-6]/mixer/attention_weights".

  Attributes:
    moved: the paper's p. This and what follows as in `redistribute`.
    least_ratio: the paper's rho.
    least_mass: of image tokens together.
    every_head: a control.
    donors: which sinks give.
    receivers: which keys get.
    needs_image_sink: as in the released code.
  """

  moved: float = 0.6
  least_ratio: float = 0.8
  least_mass: float = 0.2
  every_head: bool = False
  donors: str = "all"
  receivers: str = "image"
  needs_image_sink: bool = False

  def _changed(self, weights, image, sinks, queries):
    return attention_redistribution.redistribute(
      weights,
      image,
      sinks,
      moved=self.moved,
      least_ratio=self.least_ratio,
      least_mass=self.least_mass,
      queries=queries,
      every_head=self.every_head,
      donors=self.donors,
      receivers=self.receivers,
      needs_image_sink=self.needs_image_sink,
    )


@dataclasses.dataclass(frozen=True)
class KnockOut(_ImageSinks):
  """Text queries get nothing of the image's sinks, nor anything for it."""

  def _changed(self, weights, image, sinks, queries):
    return attention_redistribution.knock_out(weights, image & sinks, queries)


@dataclasses.dataclass(frozen=True)
class Calibration(taps.StatefulEdit):
  """Attention calibration, `attention_calibration.calibrate`.

  A prompt that comes as a whole is judged as a whole, by the released code:
  earlier queries are then calibrated by what later ones attend to. What comes
  after is judged by all queries so far. With `running` every query is judged by
  itself and those before it, and one pass equals decoding.

  Attributes:
    threshold: theta, or alpha if `by_length`.
    keep: what part of its weight a sink keeps.
    heads: (layer, head) of those that are calibrated; "all"; or "given", where
      `site.given["heads"]` has a table, bool [layers, heads], another of which
      compiles nothing anew.
    by_length: whether the threshold is divided by the tokens so far.
    least_observers: queries that see a sink, at least.
    first_receives: whether the first key of a text gets some of what is freed.
    running: see above.
  """

  threshold: float
  keep: float = attention_calibration.PUBLISHED_KEEP
  heads: str | tuple[tuple[int, int], ...] = "all"
  by_length: bool = False
  least_observers: int = attention_calibration.LEAST_OBSERVERS
  first_receives: bool = True
  running: bool = False

  def init(
    self, value: jax.Array, site: taps.Site
  ) -> tuple[jax.Array, jax.Array]:
    """Nobody has seen a key: sums and observers, [batch, heads, keys]."""
    del site
    nothing = jnp.zeros((*value.shape[:2], value.shape[-1]), jnp.float32)
    return nothing, nothing

  def __call__(
    self,
    value: jax.Array,
    site: taps.Site,
    state: tuple[jax.Array, jax.Array],
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns weights, and the sums and observers of slots."""
    heads = self._heads(value, site)
    fresh = _own(value, site, state[0].shape[-1]).any(axis=1)[:, None]
    before = [jnp.where(fresh, 0.0, kept) for kept in state]
    visible = site.facts["visible"]
    new = attention_calibration.column_sums(value, visible)
    after = tuple(map(jnp.add, before, new))
    judged = after
    if self.running:
      visible = jnp.broadcast_to(visible, value.shape)
      seen = jnp.where(visible, value.astype(jnp.float32), 0.0)
      each = seen, visible.astype(jnp.float32)
      judged = [
        old[:, :, None] + jnp.cumsum(row, axis=2)
        for old, row in zip(before, each, strict=True)
      ]
    first = (site.facts["key_positions"] == 0)[:, None]
    sinks = attention_calibration.find_sinks(
      *judged,
      first[:, None] if self.running else first,
      self._threshold(site),
      self.least_observers,
    )
    spared = None if self.first_receives else first[:, 0]
    calibrated = attention_calibration.calibrate(
      value, sinks, self.keep, heads=heads, spared=spared
    )
    return calibrated, after

  def _threshold(self, site) -> float | jax.Array:
    """A number, or what broadcasts to sums of keys."""
    if not self.by_length:
      return self.threshold
    if self.running:
      tokens = site.facts["query_positions"][:, None, :, None] + 1
    else:
      real = site.facts["key_positions"] >= 0
      tokens = real.sum(axis=-1)[:, None, None]
    return self.threshold / jnp.maximum(tokens, 1).astype(jnp.float32)

  def _heads(self, value, site) -> jax.Array | None:
    """Those of this layer, bool [heads]; None for all."""
    number = value.shape[1]
    if self.heads == "all":
      return None
    if self.heads == "given":
      if site.given is None or "heads" not in site.given:
        raise ValueError(
          "heads is 'given', but there is no given['heads']; it must be a bool "
          f"table [layers, {number}], as in interpret.with_given(variables, "
          "{'heads': table})"
        )
      table = jnp.asarray(site.given["heads"], bool)
      # A scanned layer's number is not known here: too few rows would pass.
      rows = site.layer + 1 if isinstance(site.layer, int) else 1
      if table.ndim != 2 or table.shape[1] != number or len(table) < rows:
        raise ValueError(
          f"given['heads'] has shape {table.shape}; at {site.name} it must be "
          f"[layers, {number}] of all layers"
        )
      return table[site.layer]
    for pair in self.heads:
      if isinstance(pair, str) or not 0 <= pair[1] < number:
        raise ValueError(
          f"heads has {pair!r}; it must be 'all', 'given', or pairs of a layer "
          f"and a head from 0 to {number - 1}"
        )
    chosen = jnp.zeros(number, bool)
    for layer, head in self.heads:
      chosen |= (jnp.arange(number) == head) & (site.layer == layer)
    return chosen


def _drawn(found, image, site) -> jax.Array:
  """As many image tokens as are found, at random, bool [batch, queries]."""
  if site.given is None or "draw" not in site.given:
    raise ValueError(
      "at_random is True, but there is no given['draw']; it must be an integer,"
      " as in interpret.with_given(variables, {'draw': 0})"
    )
  key = jax.random.fold_in(jax.random.key(site.given["draw"]), site.layer)
  chances = jnp.where(image, jax.random.uniform(key, image.shape), -1.0)
  ranks = (-chances).argsort(axis=1).argsort(axis=1)
  return image & (ranks < found.sum(axis=1, keepdims=True))


def _own(value, site, slots: int) -> jax.Array:
  """Which key is the token of a query, bool [batch, queries, keys].

  Raises:
    ValueError: if the keys of this call are not the slots of the cache.
  """
  if value.shape[-1] != slots:
    raise ValueError(
      f"{site.name} has {value.shape[-1]} keys, and had {slots} in the call "
      "before; an edit that remembers sinks cannot follow the cache of a "
      "sliding window to which several tokens come at once: give them singly"
    )
  queries, keys = site.facts["query_positions"], site.facts["key_positions"]
  same = (queries[:, :, None] == keys[:, None, :]) & (queries >= 0)[:, :, None]
  visible = jnp.broadcast_to(site.facts["visible"], value.shape)
  return same & visible.any(axis=1)
