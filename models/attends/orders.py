"""In which order the tokens of self-attention come, by name.

What of the scores is left out goes by blocks of tokens, and an order says which
tokens are in one.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention import cluster_orders, permutations
from models.attends.layout import STATE, Layout

ORDERS = ("rows", "gilbert", "kmeans")
_CENTROIDS = ("query_centroids", "key_centroids")


def of_tokens(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  layout: Layout,
  order: str,
  window: Sequence[int] | None,
  clusters: Sequence[int],
  iterations: Sequence[int],
  seed: int | None,
) -> tuple[np.ndarray | jax.Array, np.ndarray | jax.Array] | None:
  """Returns the orders of queries and of keys, the text after the grid.

  None if all stay where they are.

  Args:
    module: see `models.attends`, and so for the arrays.
    q: queries.
    k: keys.
    layout: where they stand.
    order: one of ORDERS: "rows", row-major; "gilbert", `permutations.gilbert`;
      "kmeans", `cluster_orders`, of what queries and keys are. The released
      code of PSA has the text among the clusters; here its keys can be kept.
    window: sides of windows of the grid, whose tokens follow each other; None
      for the order by name.
    clusters: how many of queries and of keys.
    iterations: at first, and where a step of sampling before has left its
      centroids.
    seed: of the first centroids; 0 if None.

  Returns:
    Integers [tokens], or [batch, heads, tokens] of clusters.

  Raises:
    ValueError: if there are a window and another order than "rows", or clusters
      or iterations are no pairs of what there can be.
  """
  if window is not None and order != "rows":
    raise ValueError(
      f"order is {order!r} and window {tuple(window)}; blocks are made by one "
      "of them"
    )
  if order == "kmeans":
    return _clustered(module, q, k, layout, clusters, iterations, seed)
  if window is not None:
    of_grid = permutations.windows(layout.grid, window)
  elif order == "gilbert":
    of_grid = permutations.gilbert(layout.grid)
  else:
    return None
  places = permutations.joined(of_grid, layout.text)
  return places, places


def _clustered(module, q, k, layout, clusters, iterations, seed):
  """Orders by clusters, whose centroids stay for the next step of sampling."""
  for name, pair, fits in (
    ("clusters", clusters, "one number for queries and one for keys"),
    ("iterations", iterations, "those of the first step and of later ones"),
  ):
    if not isinstance(pair, Sequence) or len(pair) != 2:
      raise ValueError(f"{name} is {pair}; it must be {fits}")
  keys = jax.random.split(jax.random.key(seed or 0))
  places = []
  for x, name, count, key in zip(
    (q, k), _CENTROIDS, clusters, keys, strict=True
  ):
    grid = x[:, : layout.places]
    known = module.has_variable(STATE, name)
    if known:
      centroids = module.get_variable(STATE, name)
    else:
      centroids = cluster_orders.first_centroids(key, grid, count)
    labels, centroids = cluster_orders.kmeans(
      grid, centroids, iterations[int(known)]
    )
    if module.is_mutable_collection(STATE):
      module.put_variable(STATE, name, centroids)
    order = cluster_orders.order_of(labels)
    text = jnp.arange(layout.places, x.shape[1], dtype=order.dtype)
    text = jnp.broadcast_to(text, (*order.shape[:2], layout.text))
    places.append(jnp.concatenate([order, text], axis=-1))
  return tuple(places)
