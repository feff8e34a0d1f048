"""Attention of single heads replaced: uniform, scaled, or the mean of heads.

Pure functions of a map [batch, heads, queries, keys], after the normaliser, and
`Ablation`, the edit of "layer_*/mixer/attention_weights" that is made of them.
Every head counts by itself, also where keys and values are shared by a group:
nothing of a shared key or value changes.

Which heads, an edit says itself (`heads`, the same of each layer that its
pattern fits), or the array `CHOSEN` of what is given with the variables, bool
[layers, heads]. Other heads are then other numbers in the same program, and a
sweep over all heads compiles once: `jax.lax.map` goes over `single_heads`.

"On the Role of Attention Heads in Large Language Model Safety" (arXiv
2410.13708, section 3.1: undifferentiated attention and scaling contribution)
and "AttentionInfluence" (arXiv 2505.07293, appendix C: equal weights).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The name of the array in `site.given` that chooses heads.
CHOSEN = "ablated_heads"
KINDS = ("uniform", "uniform_of_length", "scale", "mean")
# The maps of all layers of a language model, and not those of a ViT within it.
MAPS = "layer_*/mixer/attention_weights"


def uniform_weights(visible: jax.Array, of_length: bool = False) -> jax.Array:
  """Weights that are the same of every key that a query sees.

  Args:
    visible: bool [..., queries, keys].
    of_length: whether the weight is 1 / keys, as the text of arXiv 2505.07293
      says ("1/L"), and not 1 / (visible keys); rows of a causal map then do not
      sum to 1. What is hidden has no weight there either, or the future would
      leak: both are our reading.

  Returns:
    float32 of the same shape; a query that sees nothing has zeros.
  """
  seen = visible.astype(jnp.float32)
  if of_length:
    return seen / visible.shape[-1]
  return seen / jnp.maximum(seen.sum(-1, keepdims=True), 1.0)


def uniform_heads(
  weights: jax.Array,
  chosen: jax.Array,
  visible: jax.Array | None = None,
  of_length: bool = False,
) -> jax.Array:
  """Makes the weights of some heads uniform: undifferentiated attention.

  It is the limit of queries (or keys) times epsilon where scores have no bias;
  of biased ones, as ALiBi's, queries times epsilon leave the bias.

  Args:
    weights: [batch, heads, queries, keys].
    chosen: bool [heads] or [batch, heads].
    visible: bool, broadcasts to `weights`; all if None.
    of_length: see `uniform_weights`.

  Returns:
    Weights of the same shape and dtype; those of other heads bit by bit.

  Raises:
    ValueError: if the shapes do not fit.
  """
  chosen = _each(chosen, weights)
  if visible is None:
    visible = jnp.ones((1, 1, *weights.shape[-2:]), bool)
  visible = visible.reshape((1,) * (4 - visible.ndim) + visible.shape)
  for own, whole in zip(visible.shape, weights.shape, strict=True):
    if own not in (1, whole):
      raise ValueError(
        f"visible has shape {visible.shape}; it must broadcast to the weights' "
        f"{weights.shape}"
      )
  # What is 1 of queries or keys stands for all of them, and counts as all.
  visible = jnp.broadcast_to(visible, (*visible.shape[:2], *weights.shape[-2:]))
  uniform = uniform_weights(visible, of_length).astype(weights.dtype)
  return jnp.where(chosen, uniform, weights)


def scale_heads(
  weights: jax.Array, chosen: jax.Array, factor: float | jax.Array
) -> jax.Array:
  """Multiplies the weights of some heads, and so what they give.

  0 is zero ablation. Rows of the heads no longer sum to 1.

  Args:
    weights: [batch, heads, queries, keys].
    chosen: bool [heads] or [batch, heads].
    factor: of the chosen.
  """
  chosen = _each(chosen, weights)
  scaled = (weights.astype(jnp.float32) * factor).astype(weights.dtype)
  return jnp.where(chosen, scaled, weights)


def mean_heads(weights: jax.Array, chosen: jax.Array) -> jax.Array:
  """Gives some heads the mean of all heads of their layer, themselves too.

  The mean of weights; the paper's is of queries, keys or outputs, of which the
  first two do not make weights uniform either.

  Args:
    weights: [batch, heads, queries, keys].
    chosen: bool [heads] or [batch, heads].
  """
  chosen = _each(chosen, weights)
  mean = weights.astype(jnp.float32).mean(1, keepdims=True)
  return jnp.where(chosen, mean.astype(weights.dtype), weights)


@dataclasses.dataclass(frozen=True)
class Ablation:
  """An edit of maps of attention: takes from some heads what they look at.

  Attributes:
    kind: "uniform", of the visible keys; "uniform_of_length", see
      `uniform_weights`; "scale"; or "mean", of the heads of a layer.
    factor: of "scale"; 0 for zero ablation.
    heads: numbers of heads, the same in each layer that the edit is put at;
      None for those that the array CHOSEN says, bool [layers, heads], given
      with the variables (`interpret.with_given`, or `given=` of `run`).
  """

  kind: str = "uniform"
  factor: float = 0.0
  heads: tuple[int, ...] | None = None

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if there is no such kind.
    """
    if self.kind not in KINDS:
      raise ValueError(f"kind is {self.kind!r}; it must be one of {KINDS}")

  def __call__(self, weights: jax.Array, site: Any) -> jax.Array:
    """Edits a map [batch, heads, queries, keys]; see `interpret.run`.

    Raises:
      ValueError: if no heads are said, or some that are not there.
    """
    chosen = self._chosen(weights.shape[1], site)
    if self.kind == "scale":
      return scale_heads(weights, chosen, self.factor)
    if self.kind == "mean":
      return mean_heads(weights, chosen)
    visible = site.facts.get("visible")
    of_length = self.kind == "uniform_of_length"
    return uniform_heads(weights, chosen, visible, of_length)

  def _chosen(self, count: int, site: Any) -> jax.Array:
    """Which heads of this layer, bool [heads]."""
    if self.heads is not None:
      if any(not 0 <= head < count for head in self.heads):
        raise ValueError(
          f"heads is {self.heads}; those of {site.name} are 0 to {count - 1}"
        )
      return jnp.asarray([head in self.heads for head in range(count)])
    if CHOSEN not in (site.given or {}):
      raise ValueError(
        f"the edit of {site.name} has no heads; give Ablation(heads=...), or "
        f"the array {CHOSEN!r}, bool [layers, heads], with the variables"
      )
    mask = jnp.asarray(site.given[CHOSEN])
    if site.layer is None:
      raise ValueError(
        f"{site.name} is of no layer; the rows of {CHOSEN!r} are layers, so "
        "give Ablation(heads=...)"
      )
    # The number of a scanned layer is not known here: too few rows would pass.
    rows = site.layer + 1 if isinstance(site.layer, int) else 1
    if mask.ndim != 2 or mask.shape[1] != count or mask.shape[0] < rows:
      raise ValueError(
        f"{CHOSEN} has shape {mask.shape}; at {site.name} it must be [layers, "
        f"{count}] of all layers"
      )
    return mask.astype(bool)[site.layer]


def mask_of(
  pairs: Iterable[tuple[int, int]], layers: int, heads: int
) -> np.ndarray:
  """Marks heads, bool [layers, heads].

  Args:
    pairs: of the number of a layer and that of a head in it.
    layers: how many there are.
    heads: how many a layer has.

  Raises:
    ValueError: if there is no such head.
  """
  mask = np.zeros((layers, heads), bool)
  for layer, head in pairs:
    if not (0 <= layer < layers and 0 <= head < heads):
      raise ValueError(
        f"pairs has ({layer}, {head}); layers are 0 to {layers - 1}, heads 0 "
        f"to {heads - 1}"
      )
    mask[layer, head] = True
  return mask


def pairs_of(mask: np.ndarray | jax.Array) -> tuple[tuple[int, int], ...]:
  """The (layer, head) that a mask [layers, heads] marks, in order."""
  return tuple((int(i), int(j)) for i, j in np.argwhere(np.asarray(mask)))


def single_heads(layers: int, heads: int) -> np.ndarray:
  """A mask of each head alone, bool [layers * heads, layers, heads]."""
  return np.eye(layers * heads, dtype=bool).reshape(-1, layers, heads)


def random_heads(
  rng: np.random.Generator,
  count: int,
  shape: Sequence[int],
  excluded: np.ndarray | None = None,
) -> np.ndarray:
  """Marks heads that chance took: the control of every set of heads.

  Args:
    rng: of NumPy.
    count: how many.
    shape: (layers, heads).
    excluded: bool [layers, heads], those not to take; None for none.

  Returns:
    bool [layers, heads].

  Raises:
    ValueError: if there are not so many.
  """
  free = np.ones(shape, bool) if excluded is None else ~np.asarray(excluded)
  places = np.flatnonzero(free)
  if not 0 <= count <= len(places):
    raise ValueError(f"count is {count}; there are {len(places)} heads to take")
  mask = np.zeros(free.size, bool)
  mask[rng.choice(places, count, replace=False)] = True
  return mask.reshape(free.shape)


def _each(chosen: jax.Array, weights: jax.Array) -> jax.Array:
  """Brings what is chosen to [batch or 1, heads, 1, 1]."""
  chosen = jnp.asarray(chosen, bool)
  if weights.ndim != 4:
    raise ValueError(
      f"weights have shape {weights.shape}; they must be [batch, heads, "
      "queries, keys]"
    )
  fits = (weights.shape[1:2], weights.shape[:2], (1, weights.shape[1]))
  if chosen.shape not in fits:
    raise ValueError(
      f"chosen has shape {chosen.shape}; with weights of shape {weights.shape} "
      f"it must be [{weights.shape[1]}] or [{weights.shape[0]}, "
      f"{weights.shape[1]}]"
    )
  return chosen.reshape(-1, weights.shape[1], 1, 1)
