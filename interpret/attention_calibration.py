"""Attention calibration: chosen heads give their later sinks less weight.

"Unveiling and Harnessing Hidden Attention Sinks" (ACT, arXiv 2406.15765). A
token is a sink of a head if queries that see it give it more weight than a
threshold, on average. In heads that are chosen on labelled examples a sink
keeps a part of its weight, and the rest goes to the other keys in proportion.
Nothing is trained, but labels choose the heads, so that only examples which the
choice has not seen say what it is worth.

The equations are those of the released code, as the paper was not at hand;
what is kept is `keep` here, for beta has two meanings in what is written about
it. Ours: the first key is left out by name, not as the first candidate, which
spares a real sink where the first key is none; a sink has a least number of
observers, since the last keys are seen by few; padding does not count; and in
decoding sums over queries go on (`column_sums` of what comes is added), where
the released function has the sums of one row only and breaks it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Of the released runs: for classification and multiple choice, and for chat.
PUBLISHED_THRESHOLDS = {"classification": 0.1, "chat": 0.15}
PUBLISHED_KEEP = 0.4
# As it is reported, the paper's threshold is 5 / N for a text of N tokens.
PUBLISHED_ALPHA = 5.0
# The released searches begin with this layer.
FIRST_LAYER = 2
LEAST_OBSERVERS = 8


class Search(NamedTuple):
  """What a search of heads found.

  Attributes:
    baseline: of the model as it is.
    gains: float64 [layers, heads], what each head alone adds; NaN of those that
      were not tried.
    chosen: bool [layers, heads], heads that add something.
  """

  baseline: float
  gains: np.ndarray
  chosen: np.ndarray


def causal(valid: jax.Array) -> jax.Array:
  """What is visible in rows without a cache.

  Args:
    valid: which tokens are no padding, bool [batch, length].

  Returns:
    bool [batch, 1, length, length].
  """
  length = valid.shape[1]
  before = jnp.tril(jnp.ones((length, length), bool))
  both = valid[:, :, None] & valid[:, None, :]
  return (both & before[None])[:, None]


def column_sums(
  weights: jax.Array, visible: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What each key is given, and by how many queries it is seen.

  Args:
    weights: [batch, heads, queries, keys].
    visible: which keys a query sees, bool that broadcasts to this shape.

  Returns:
    (sums, observers): float32 [batch, heads, keys] each. Of two calls for other
    queries of the same keys, sums add up.
  """
  visible = jnp.broadcast_to(visible, weights.shape)
  seen = jnp.where(visible, weights.astype(jnp.float32), 0.0)
  return seen.sum(axis=2), visible.sum(axis=2).astype(jnp.float32)


def sink_scores(weights: jax.Array, visible: jax.Array) -> jax.Array:
  """s_k: the mean weight that a key gets from queries which see it.

  Args:
    weights: [batch, heads, queries, keys].
    visible: which keys a query sees, bool that broadcasts to this shape; see
      `causal`.

  Returns:
    float32 [batch, heads, keys], 0 of keys that nobody sees.
  """
  sums, observers = column_sums(weights, visible)
  return sums / jnp.maximum(observers, 1.0)


def find_sinks(
  sums: jax.Array,
  observers: jax.Array,
  first: jax.Array,
  threshold: float | jax.Array,
  least_observers: int = LEAST_OBSERVERS,
) -> jax.Array:
  """Which keys are sinks: those that get more than a threshold on average.

  Args:
    sums: of `column_sums`, [batch, heads, ..., keys].
    observers: likewise.
    first: which keys are the first of their text, and no sinks whatever they
      get, bool that broadcasts to the shape of `sums`.
    threshold: theta, or alpha / N; what broadcasts.
    least_observers: a sink is seen by as many queries at least. The released
      code has 1.

  Returns:
    bool of the shape of `sums`.
  """
  enough = observers >= max(least_observers, 1)
  return enough & (sums > threshold * observers) & ~first


def calibrate(
  weights: jax.Array,
  sinks: jax.Array,
  keep: float = PUBLISHED_KEEP,
  *,
  heads: jax.Array | None = None,
  spared: jax.Array | None = None,
) -> jax.Array:
  """Takes a part of the weights of sinks, and gives it to the other keys.

  Args:
    weights: after softmax, [batch, heads, queries, keys].
    sinks: bool [batch, heads, keys], or with an axis of queries before keys.
    keep: what part of its weight a sink keeps.
    heads: bool [heads], those in which it is done; None for all.
    spared: bool [batch, keys], keys that get nothing of it, as the first one,
      which by the paper gets most; None for none.

  Returns:
    Like `weights`. The sum of a query's weights stays, zeros stay zeros, and
    the weights of all receivers of a query are multiplied by one factor. Where
    receivers have nothing, nothing changes.

  Raises:
    ValueError: if `keep` is not from 0 to 1, or shapes do not agree.
  """
  if not 0 <= keep <= 1:
    raise ValueError(f"keep is {keep}; it must be from 0 to 1")
  batch, number, queries, keys = weights.shape
  if sinks.ndim == 3:
    sinks = sinks[:, :, None]
  whole = ((batch, number, 1, keys), (batch, number, queries, keys))
  if sinks.shape not in whole:
    raise ValueError(
      f"sinks has shape {sinks.shape}; weights of shape {weights.shape} need "
      f"{(batch, number, keys)}, or an axis of {queries} queries before keys"
    )
  receiving = ~sinks
  if spared is not None:
    receiving = receiving & ~spared[:, None, None, :]
  exact = weights.astype(jnp.float32)
  freed = (1.0 - keep) * jnp.where(sinks, exact, 0.0).sum(-1, keepdims=True)
  mass = jnp.where(receiving, exact, 0.0).sum(-1, keepdims=True)
  rows = (mass > 0) & sinks.any(axis=-1, keepdims=True)
  if heads is not None:
    rows = rows & heads[None, :, None, None]
  factor = 1.0 + freed / jnp.where(mass > 0, mass, 1.0)
  scale = jnp.where(sinks, keep, jnp.where(receiving, factor, 1.0))
  return jnp.where(rows, (exact * scale).astype(weights.dtype), weights)


def select_heads(
  evaluate: Callable[[np.ndarray], float],
  layers: int,
  heads: int,
  *,
  first_layer: int = FIRST_LAYER,
) -> Search:
  """Tries each head alone, and chooses those that do better than none.

  It runs the evaluation once for each head and once more, outside jit. When
  heads change nothing but by chance, about half of those that change an answer
  look better: measure what was chosen on other examples, beside as many heads
  drawn by chance (`random_heads`) and those chosen with labels that were mixed.

  Args:
    evaluate: gives the accuracy, or what else shall grow, with the heads of a
      table, bool [layers, heads], calibrated.
    layers: of the model.
    heads: of a layer.
    first_layer: earlier ones are not tried.

  Raises:
    ValueError: if there is no layer to try.
  """
  if not 0 <= first_layer < layers:
    raise ValueError(
      f"first_layer is {first_layer}; of {layers} layers it must be from 0 to "
      f"{layers - 1}"
    )
  table = np.zeros((layers, heads), bool)
  baseline = float(evaluate(table))
  gains = np.full((layers, heads), np.nan)
  for place in np.ndindex(layers, heads):
    if place[0] >= first_layer:
      alone = table.copy()
      alone[place] = True
      gains[place] = float(evaluate(alone)) - baseline
  return Search(baseline, gains, np.nan_to_num(gains) > 0)


def random_heads(
  rng: np.random.Generator,
  count: int,
  layers: int,
  heads: int,
  *,
  first_layer: int = FIRST_LAYER,
) -> np.ndarray:
  """Draws heads among those that `select_heads` tries, a control.

  Returns:
    bool [layers, heads], of which `count` are true.

  Raises:
    ValueError: if there are not as many.
  """
  tried = (layers - first_layer) * heads
  if not 0 <= count <= tried:
    raise ValueError(
      f"count is {count}; of {layers} layers from {first_layer} on there are "
      f"{max(tried, 0)} heads to draw from"
    )
  drawn = np.zeros(tried, bool)
  drawn[rng.choice(tried, count, replace=False)] = True
  table = np.zeros((layers, heads), bool)
  table[first_layer:] = drawn.reshape(-1, heads)
  return table
