"""Sinks and outliers: what attention looks at, and how large values get.

Functions of arrays that `models.taps.read` gives. Tokens that are padding,
those with position -1, count nowhere. `summary` has all of them of a batch.

The definitions are those of "Gated Attention for Large Language Models" (arXiv
2505.06708: F-Attn, M-Act) and of "A Unified View of Attention and Residual
Sinks" (arXiv 2601.22966: Havg).
"""

import collections
import fnmatch
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from interpret import tap_names
from models import taps

MAPS = "*/attention_weights*"
STATES = "*hidden_state*"
EMBEDDED = "embedded_state"
GATES = "*/gate_values*"


class ResidualSinks(NamedTuple):
  """How unlike the channels of a residual stream are.

  Attributes:
    average: float32 [width], mean of |x| over tokens and states: Havg.
    ratio: of its largest by its median.
    channel: int32, which is the largest.
  """

  average: jax.Array
  ratio: jax.Array
  channel: jax.Array


def first_token_attention(
  weights: jax.Array,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
  skip: int = 0,
) -> jax.Array:
  """Weight of a segment's first token, averaged over its queries: F-Attn.

  The first query of a segment sees nothing but the first token, and counts as
  others do: over n keys attention that is the same everywhere has H(n) / n,
  the harmonic number by n, 0.04 for n = 128. `skip` leaves such queries out.

  Args:
    weights: [batch, heads, length, length], of queries and keys of a row.
    positions: integers [batch, length], -1 for padding; None for none.
    segments: integers [batch, length]; None for one segment a row.
    skip: how many queries at a segment's beginning do not count.

  Returns:
    float32 [heads].

  Raises:
    ValueError: if shapes do not agree.
  """
  positions, segments = _places(weights, positions, segments)
  own = _own(positions, segments)
  # [batch, length]: the slot of the first token of each token's segment.
  first = jnp.argmax(own, axis=-1)
  counted = (positions >= 0) & (_before(own) >= skip)
  index = first[:, None, :, None]
  on_first = jnp.take_along_axis(weights.astype(jnp.float32), index, axis=-1)
  return _mean_over_queries(on_first[..., 0], counted)


def attention_entropy(
  weights: jax.Array,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
) -> jax.Array:
  """Entropy in nats of the weights of a query, averaged over queries.

  Weights that do not sum to one, or are negative, are those of their shares
  |w| / sum |w|; a query whose weights are all zero has no entropy, 0.

  Args:
    weights: [batch, heads, length, length].
    positions: integers [batch, length], -1 for padding; None for none.
    segments: integers [batch, length]; None for one segment a row.

  Returns:
    float32 [heads].

  Raises:
    ValueError: if shapes do not agree.
  """
  positions, segments = _places(weights, positions, segments)
  own = _own(positions, segments)[:, None]
  size = jnp.where(own, jnp.abs(weights.astype(jnp.float32)), 0.0)
  total = size.sum(-1, keepdims=True)
  shares = size / jnp.where(total > 0, total, 1.0)
  entropy = -jax.scipy.special.xlogy(shares, shares).sum(-1)
  return _mean_over_queries(entropy, positions >= 0)


def received_attention(
  weights: jax.Array,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
  causal: bool = True,
) -> jax.Array:
  """Mean weight that each token has from the queries that may see it.

  Where `first_token_attention` knows which token is the sink, this finds it.
  The last tokens of causal rows are seen by few queries, their own among them.

  Args:
    weights: [batch, heads, length, length].
    positions: integers [batch, length], -1 for padding; None for none.
    segments: integers [batch, length]; None for one segment a row.
    causal: whether queries before a token do not see it.

  Returns:
    float32 [batch, heads, length]; 0 for padding.

  Raises:
    ValueError: if shapes do not agree.
  """
  positions, segments = _places(weights, positions, segments)
  sees = _own(positions, segments) & (positions >= 0)[:, :, None]
  if causal:
    places = jnp.arange(sees.shape[-1])
    sees &= (places[None, :] <= places[:, None])[None]
  total = jnp.where(sees[:, None], weights.astype(jnp.float32), 0.0).sum(2)
  return total / jnp.maximum(sees.sum(1), 1)[:, None]


def largest_activation(
  values: jax.Array, positions: jax.Array | None = None
) -> jax.Array:
  """The largest |x| of tokens, float32; over layers its mean is M-Act.

  Args:
    values: [batch, length, ...].
    positions: integers [batch, length], -1 for padding; None for none.
  """
  size = jnp.abs(values.astype(jnp.float32))
  return jnp.where(_real(values, positions), size, 0.0).max()


def mean_value(
  values: jax.Array, positions: jax.Array | None = None
) -> jax.Array:
  """The mean of tokens' values, as of gates, float32.

  Args:
    values: [batch or 1, length or 1, ...]; 1 for what is the same of all.
    positions: integers [batch, length], -1 for padding; None for none.
  """
  values = values.astype(jnp.float32)
  if positions is None or values.shape[:2] != positions.shape:
    return values.mean()
  real = _real(values, positions)
  count = real.sum() * (values.size / real.size)
  return jnp.where(real, values, 0.0).sum() / jnp.maximum(count, 1.0)


def residual_sinks(
  states: Iterable[jax.Array], positions: jax.Array | None = None
) -> ResidualSinks:
  """Finds channels that are large on nearly all tokens.

  Args:
    states: the residual stream before the first layer and after each, [batch,
      length, width] each.
    positions: integers [batch, length], -1 for padding; None for none.
  """
  each = []
  for state in states:
    size = jnp.abs(state.astype(jnp.float32))
    real = _real(state, positions)
    total = jnp.where(real, size, 0.0).sum((0, 1))
    each.append(total / jnp.maximum(real.sum(), 1))
  average = jnp.mean(jnp.stack(each), axis=0)
  ratio = average.max() / jnp.median(average)
  return ResidualSinks(average, ratio, jnp.argmax(average))


def smallest_norm_weight(
  params: Mapping[str, Any], offset: bool = False
) -> jax.Array:
  """The smallest |factor| of all normalisations, float32; inf without any.

  Args:
    params: parameters; the factors of a normalisation are its "scale".
    offset: whether a factor is one plus what is stored.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  smallest = [
    jnp.abs(x.astype(jnp.float32) + offset).min()
    for path, x in flat.items()
    if fnmatch.fnmatch(path, "*norm/scale")
  ]
  return jnp.min(jnp.stack([jnp.float32(jnp.inf), *smallest]))


def of_heads(
  measure: Callable[..., jax.Array],
  model: nn.Module,
  variables: Mapping[str, Any],
  tokens: jax.Array,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """A statistic of every head of every layer: `measure` of all maps.

  Args:
    measure: `first_token_attention`, `attention_entropy`, or another function
      of weights, positions and segments to [heads].
    model: a `models.transformer.Transformer`.
    variables: its variables.
    tokens: [batch, length].
    positions: integers [batch, length], -1 for padding; None for none.
    segments: integers [batch, length]; None for one segment a row.

  Returns:
    [heads] by the names of the maps, the first layer first.

  Raises:
    ValueError: if the model has no maps.
  """
  places = {"positions": positions, "segments": segments}
  known = taps.list_names(model, variables, tokens, **places)
  names = tap_names.matching(MAPS, known)
  _, maps = taps.read(model, variables, tokens, names=names, **places)
  return collections.OrderedDict(
    (name, measure(maps[name], **places)) for name in names
  )


def summary(
  model: nn.Module,
  variables: Mapping[str, Any],
  tokens: jax.Array,
  positions: jax.Array | None = None,
  segments: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """All of these for a transformer on one batch; it can be jitted.

  Args:
    model: a `models.transformer.Transformer`.
    variables: its variables.
    tokens: [batch, length].
    positions: integers [batch, length], -1 for padding; None for none.
    segments: integers [batch, length]; None for one segment a row.

  Returns:
    float32 numbers: first_token_attention and attention_entropy (means over
    heads and layers), largest_activation (of embeddings and layers),
    mean_largest (M-Act: the mean over layers of the largest of each),
    residual_sinks (the ratio), smallest_norm_weight, and mean_gate where there
    are gates. What no layer has, as maps, is left out.
  """
  places = {"positions": positions, "segments": segments}
  known = taps.list_names(model, variables, tokens, **places)
  wanted = (MAPS, GATES, STATES, EMBEDDED)
  names = [n for n in known if any(fnmatch.fnmatch(n, w) for w in wanted)]
  _, values = taps.read(model, variables, tokens, names=names, **places)

  def of(*patterns):
    return [
      value
      for name, value in values.items()
      if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]

  def mean(measure, pattern):
    return jnp.mean(jnp.stack([measure(value) for value in of(pattern)]))

  largest = functools.partial(largest_activation, positions=positions)
  states = of(EMBEDDED, STATES)
  result = {
    "largest_activation": jnp.max(jnp.stack([largest(x) for x in states])),
    "mean_largest": mean(largest, STATES),
    "residual_sinks": residual_sinks(states, positions).ratio,
    "smallest_norm_weight": smallest_norm_weight(
      variables["params"], model.norm_offset
    ),
  }
  if of(MAPS):
    for measure in (first_token_attention, attention_entropy):
      measured = lambda maps, f=measure: f(maps, **places).mean()
      result[measure.__name__] = mean(measured, MAPS)
  if of(GATES):
    gate = functools.partial(mean_value, positions=positions)
    result["mean_gate"] = mean(gate, GATES)
  return result


def _places(weights, positions, segments) -> tuple[jax.Array, jax.Array]:
  """Positions and segments [batch, length], whether they were given or not."""
  if weights.ndim != 4 or weights.shape[2] != weights.shape[3]:
    raise ValueError(
      f"weights have shape {weights.shape}; they must be [batch, heads, "
      "length, length], those of a row without a cache"
    )
  shape = (weights.shape[0], weights.shape[2])
  for name, given in (("positions", positions), ("segments", segments)):
    if given is not None and given.shape != shape:
      raise ValueError(
        f"{name} has shape {given.shape}; weights of shape {weights.shape} "
        f"need {shape}"
      )
  if positions is None:
    positions = jnp.zeros(shape, jnp.int32)
  return positions, jnp.zeros(shape) if segments is None else segments


def _own(positions, segments) -> jax.Array:
  """Whether a key is of the query's segment, [batch, queries, keys]."""
  return (segments[:, :, None] == segments[:, None, :]) & (
    positions[:, None, :] >= 0
  )


def _before(own) -> jax.Array:
  """How many tokens of its segment are before each, [batch, length]."""
  places = jnp.arange(own.shape[-1])
  return (own & (places[None, :] < places[:, None])[None]).sum(-1)


def _mean_over_queries(measured, counted) -> jax.Array:
  """Mean over rows and queries of [batch, heads, queries]: [heads]."""
  counted = counted[:, None].astype(jnp.float32)
  total = (measured * counted).sum((0, 2))
  return total / jnp.maximum(counted.sum(), 1.0)


def _real(values, positions) -> jax.Array:
  """What is no padding, bool [batch, length, 1, ...]."""
  shape = values.shape[:2] + (1,) * (values.ndim - 2)
  if positions is None:
    return jnp.ones(shape, bool)
  return (positions >= 0).reshape(shape)
