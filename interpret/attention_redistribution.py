"""Visual attention redistribution: image tokens that are sinks give to others.

"See What You Are Told: Visual Attention Sink in Large Multimodal Models" (arXiv
2503.03321). Some image tokens draw attention whatever is asked, and their
states are large in few channels that are always the same. Heads that look at
the image already hand a part of what sinks get to the image tokens that are no
sinks. Nothing is trained.

The paper's p is `moved` and its rho is `least_ratio` here. The released code
calls p what is *kept* and bounds by rho the part of *sinks*; `from_released`
turns its numbers into ours. Queries choose for each head, by the weights as
they came. Of what is moved most may be a text sink's, as of the first token:
`masses` tells them apart, and `donors` leaves one kind alone.

Ours: the threshold for narrow models (`scaled_threshold`), the search of
channels (`find_dimensions`), `donors`, and that each token is looked at when it
comes, where the released code looks at those of the prompt only.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models import registry

# Of LLaMA-2-7B, which the paper's threshold is for.
PUBLISHED_WIDTH, PUBLISHED_THRESHOLD = 4096, 20.0
# Of language models, whichever vision model stands before them.
PUBLISHED_DIMENSIONS = {
  "llama_2_7b": (1415, 2533),
  "llama_2_13b": (2100, 4743),
  "qwen2_vl_7b": (458, 2570),
  "internvl2_8b": (3584,),
}
# The paper's rho: general, on hallucination, and where details count.
PUBLISHED_RATIOS = {"general": 0.8, "hallucination": 0.5, "vision_centric": 0.9}
DONORS = ("all", "image", "text")
RECEIVERS = ("image", "text", "both")
# Of sums of weights, relative.
_ROUNDING = 1e-6


class Masses(NamedTuple):
  """Where the weights of a query go, float32 [batch, heads, queries] each.

  Attributes:
    image_sinks: to image tokens that are sinks.
    text_sinks: to other sinks, as the first token.
    image: to image tokens that are none.
    text: to what is left.
  """

  image_sinks: jax.Array
  text_sinks: jax.Array
  image: jax.Array
  text: jax.Array


def scaled_threshold(width: int) -> float:
  """The paper's threshold 20 for another width: 20 sqrt(width / 4096). Ours.

  |x| / RMS(x) is at most sqrt(width), which below 400 channels is less than 20.
  """
  return PUBLISHED_THRESHOLD * math.sqrt(width / PUBLISHED_WIDTH)


def from_released(p: float, rho: float) -> dict[str, float]:
  """Options of `redistribute` that do what the released code does with p, rho.

  Its configuration p = 0.6, rho = 0.5 moves 0.4.
  """
  return {"moved": 1.0 - p, "least_ratio": 1.0 - rho}


def activation_ratio(states: jax.Array, dimensions: Sequence[int]) -> jax.Array:
  """phi: the largest |x| / RMS(x) of some channels.

  Args:
    states: what enters a layer, [..., width].
    dimensions: channels.

  Returns:
    float32 [...], from 0 to sqrt(width); 0 of a state that is 0.

  Raises:
    ValueError: without channels, or if there is no such channel.
  """
  width = states.shape[-1]
  dimensions = tuple(dimensions)
  if not dimensions or not all(0 <= d < width for d in dimensions):
    raise ValueError(
      f"dimensions is {dimensions}; it must be channels from 0 to {width - 1}, "
      "as find_dimensions gives"
    )
  states = states.astype(jnp.float32)
  largest = jnp.abs(states[..., np.array(dimensions)]).max(axis=-1)
  size = jnp.sqrt(_nonzero((states**2).mean(axis=-1)))
  return largest / size


def sink_mask(
  states: jax.Array, dimensions: Sequence[int], threshold: float
) -> jax.Array:
  """Which tokens are sinks: phi >= threshold.

  Args:
    states: what enters a layer, [batch, length, width].
    dimensions: channels that are large in sinks.
    threshold: the paper's tau; `scaled_threshold` of narrow models.

  Returns:
    bool [batch, length].

  Raises:
    ValueError: as `activation_ratio`, and for a threshold that no state of this
      width reaches.
  """
  width = states.shape[-1]
  if not 0 < threshold <= math.sqrt(width):
    raise ValueError(
      f"threshold is {threshold}; it must be above 0 and at most "
      f"{math.sqrt(width):.4g}, which |x| / RMS(x) of width {width} does not "
      f"exceed: scaled_threshold({width}) is {scaled_threshold(width):.4g}"
    )
  return activation_ratio(states, dimensions) >= threshold


def find_dimensions(states: jax.Array, count: int = 2) -> tuple[int, ...]:
  """The channels in which states of sinks are large; ours.

  Args:
    states: of tokens that are sinks, the first of a text as a rule, [layers,
      batch, width]; leave out what enters layers 0 and 1.
    count: how many channels.

  Returns:
    Those of the largest median of |x| / RMS(x), the largest first.

  Raises:
    ValueError: for another rank, or more channels than there are.
  """
  states = np.asarray(states, np.float64)
  if states.ndim != 3 or 0 in states.shape:
    raise ValueError(
      f"states has shape {states.shape}; it must be [layers, batch, width]"
    )
  if not 1 <= count <= states.shape[-1]:
    raise ValueError(
      f"count is {count}; it must be from 1 to the width {states.shape[-1]}"
    )
  size = np.sqrt((states**2).mean(axis=-1, keepdims=True))
  ratio = np.abs(states) / np.where(size > 0, size, 1.0)
  median = np.median(ratio, axis=(0, 1))
  return tuple(int(d) for d in np.argsort(-median, kind="stable")[:count])


def masses(weights: jax.Array, image: jax.Array, sinks: jax.Array) -> Masses:
  """Sums weights over four kinds of keys.

  Args:
    weights: [batch, heads, queries, keys].
    image: which keys are image tokens, bool [batch, keys].
    sinks: which are sinks, bool [batch, keys].

  Raises:
    ValueError: if shapes do not agree.
  """
  _check(weights, image=image, sinks=sinks)
  kinds = image & sinks, ~image & sinks, image & ~sinks, ~image & ~sinks
  return Masses(*(_sum(weights.astype(jnp.float32), kind) for kind in kinds))


def image_centric(
  weights: jax.Array,
  image: jax.Array,
  sinks: jax.Array,
  *,
  least_ratio: float = 0.8,
  least_mass: float = 0.2,
) -> jax.Array:
  """Which heads, for which queries, look at what the image shows.

  Args:
    weights: [batch, heads, queries, keys].
    image: which keys are image tokens, bool [batch, keys].
    sinks: which are sinks, bool [batch, keys].
    least_ratio: the paper's rho, what part of the weights of image tokens those
      that are no sinks must have.
    least_mass: what image tokens must have together.

  Returns:
    bool [batch, heads, queries].

  Raises:
    ValueError: if shapes do not agree.
  """
  found = masses(weights, image, sinks)
  whole = found.image_sinks + found.image
  # Without a division, which of nothing by nothing would be no number; and what
  # is equal but for rounding is enough.
  enough = found.image * (1 + _ROUNDING) >= least_ratio * whole
  return (whole > 0) & (whole * (1 + _ROUNDING) >= least_mass) & enough


def redistribute(
  weights: jax.Array,
  image: jax.Array,
  sinks: jax.Array,
  *,
  moved: float = 0.6,
  least_ratio: float = 0.8,
  least_mass: float = 0.2,
  queries: jax.Array | None = None,
  every_head: bool = False,
  donors: str = "all",
  receivers: str = "image",
  needs_image_sink: bool = False,
) -> jax.Array:
  """Moves weights from sinks to image tokens, in image-centric heads.

  Args:
    weights: after softmax, [batch, heads, queries, keys].
    image: which keys are image tokens, bool [batch, keys].
    sinks: which are sinks, of the image and of the text, bool [batch, keys].
    moved: the paper's p, what part of the weights of sinks is moved.
    least_ratio: see `image_centric`.
    least_mass: see `image_centric`.
    queries: bool [batch, queries], those of the text; None for all.
    every_head: whether all heads do it, a control.
    donors: which sinks give, "all", those of the "image" or of the "text".
    receivers: which keys that are no sinks are given to, of the "image", of the
      "text" or of "both"; the last two are controls.
    needs_image_sink: whether rows of a batch without a sink in the image stay
      as they are. So the released code has it; the paper moves what the first
      token has all the same.

  Returns:
    Like `weights`. The sum of a query's weights stays, weights of keys that
    neither give nor get are the same bits, and those of receivers are all
    multiplied by one factor. Where receivers have nothing, nothing changes.

  Raises:
    ValueError: if shapes do not agree, `moved` is not from 0 to 1, or there are
      no such donors or receivers.
  """
  _check(weights, image=image, sinks=sinks, queries=queries)
  if not 0 <= moved <= 1:
    raise ValueError(f"moved is {moved}; it must be from 0 to 1")
  giving = sinks & _kind("donors", donors, DONORS, image)
  receiving = ~sinks & _kind("receivers", receivers, RECEIVERS, image)
  rows = jnp.ones(weights.shape[:3], bool)
  if not every_head:
    rows = image_centric(
      weights, image, sinks, least_ratio=least_ratio, least_mass=least_mass
    )
  if queries is not None:
    rows = rows & queries[:, None, :]
  if needs_image_sink:
    rows = rows & (image & sinks).any(axis=-1)[:, None, None]
  exact = weights.astype(jnp.float32)
  freed, mass = moved * _sum(exact, giving), _sum(exact, receiving)
  rows = rows & (mass > 0)
  factor = 1 + freed / _nonzero(mass)
  scale = jnp.where(receiving[:, None, None], factor[..., None], 1.0)
  scale = jnp.where(giving[:, None, None], 1.0 - moved, scale)
  changed = (exact * scale).astype(weights.dtype)
  return jnp.where(rows[..., None], changed, weights)


def knock_out(
  weights: jax.Array, keys: jax.Array, queries: jax.Array | None = None
) -> jax.Array:
  """Sets the weights of some keys to zero; others keep what they have.

  Args:
    weights: after softmax, [batch, heads, queries, keys].
    keys: which keys, bool [batch, keys].
    queries: for which queries, bool [batch, queries]; None for all.

  Raises:
    ValueError: if shapes do not agree.
  """
  _check(weights, keys=keys, queries=queries)
  out = keys[:, None, None, :]
  if queries is not None:
    out = out & queries[:, None, :, None]
  return jnp.where(out, jnp.zeros((), weights.dtype), weights)


def contribution(
  weights: jax.Array, values: jax.Array, out: jax.Array
) -> jax.Array:
  """|| a_ij x_j W_OV ||: what a key adds to a query's state, head by head.

  Args:
    weights: [batch, heads, queries, keys].
    values: x_j W_V, [batch, keys, value heads, head_dim]; each of these heads
      serves as many query heads as there are more of them.
    out: the kernel of the output, W_O, [heads, head_dim, width].

  Returns:
    float32 [batch, heads, queries, keys].

  Raises:
    ValueError: if shapes do not agree.
  """
  heads = weights.shape[1]
  if heads % values.shape[2] or out.shape[:2] != (heads, values.shape[3]):
    raise ValueError(
      f"weights of {heads} heads, values of shape {values.shape} and out of "
      f"shape {out.shape} do not agree; out must be [{heads}, "
      f"{values.shape[3]}, width], and value heads divide {heads}"
    )
  values = jnp.repeat(values, heads // values.shape[2], axis=2)
  added = jnp.einsum(
    "bkhd,hdw->bhkw", values.astype(jnp.float32), out.astype(jnp.float32)
  )
  size = jnp.linalg.norm(added, axis=-1)
  return jnp.abs(weights.astype(jnp.float32)) * size[:, :, None, :]


def _kind(field, kind, known, image) -> jax.Array:
  """Keys of the image, of the text, or all, bool [batch, keys]."""
  if kind not in known:
    raise registry.unknown(field, kind, known)
  if kind == "image":
    return image
  return ~image if kind == "text" else jnp.ones_like(image)


def _nonzero(x) -> jax.Array:
  """1 in the place of 0, to divide by, whose gradients are numbers too."""
  return jnp.where(x > 0, x, 1.0)


def _sum(weights, keys) -> jax.Array:
  """The weights of some keys [batch, keys] together."""
  return jnp.where(keys[:, None, None, :], weights, 0.0).sum(axis=-1)


def _check(weights, *, queries=None, **keys) -> None:
  if weights.ndim != 4:
    raise ValueError(
      f"weights has shape {weights.shape}; it must be [batch, heads, queries, "
      "keys]"
    )
  batch, _, length, number = weights.shape
  for name, given in keys.items():
    if given.shape != (batch, number) or given.dtype != bool:
      raise ValueError(
        f"{name} is {given.dtype} {given.shape}; weights of shape "
        f"{weights.shape} need bool {(batch, number)}"
      )
  if queries is not None and queries.shape != (batch, length):
    raise ValueError(
      f"queries has shape {queries.shape}; weights of shape {weights.shape} "
      f"need {(batch, length)}"
    )
