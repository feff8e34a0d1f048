"""CARVE: where a question looks that a general instruction does not.

"Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning" (arXiv
2509.06461). A model's attention to an image under a question is divided, token
by token, by that under an instruction which asks for nothing in particular.
What is left is what the question is about; `image_regions` keeps the best
regions of it, crops and magnifies, and the model is asked again.

In the order of use: `image_maps` of both prompts, `contrast`, `fuse`, then
`image_regions.select` and `image_regions.refine`. All but the last two are of
jax.numpy, jit and differentiate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import image_places, taps


def image_maps(
  model: nn.Module,
  variables: Mapping[str, Any],
  inputs: Sequence[Any],
  layers: Sequence[int],
  query: int | jax.Array = -1,
) -> jax.Array:
  """Reads what one query sees of an image in some layers of a language model.

  Where a row's image is, the model says: `image_places.SPAN`.

  Under jit, layers after the last of these are not computed. Maps of a general
  instruction depend on the image alone, and can be kept.

  Args:
    model: with taps "layer_<i>/mixer/attention_weights".
    variables: of it.
    inputs: what it is called with, (prompts, images) and, if they are not the
      first, before which token images stand.
    layers: their numbers.
    query: see `image_attention`.

  Returns:
    float32 [batch, layers, image tokens].

  Raises:
    ValueError: if there is no image or no such layer.
  """
  if len(inputs) < 2 or inputs[1] is None:
    raise ValueError(
      f"inputs has {len(inputs)} arrays and no image; it must be (prompts, "
      "images), or (prompts, images, image_start)"
    )
  names = [f"layer_{i}/mixer/attention_weights" for i in layers]
  span = image_places.SPAN
  _, values = taps.read(model, variables, *inputs, names=[*names, span])
  # No cache and no padding: keys stand where their positions say.
  tokens = jnp.arange(model.image_tokens(inputs[1].shape))
  keys = values[span][:, :1] + tokens[None]
  seen = [image_attention(values[name], keys, query) for name in names]
  return jnp.stack(seen, axis=1)


def image_attention(
  weights: jax.Array, image: jax.Array, query: int | jax.Array = -1
) -> jax.Array:
  """What a query's heads, averaged, see of an image.

  It is raw mass: a query that looks at the image more has larger values
  everywhere. `normalized` makes shares of them.

  Args:
    weights: [batch, heads, queries, keys], those of one layer.
    image: which keys are image tokens, int32 [batch or 1, image tokens].
    query: which query, of all rows or int32 [batch] one for each; the last, as
      published, says the next token.

  Returns:
    float32 [batch, image tokens].

  Raises:
    ValueError: if weights or image have other axes.
  """
  if weights.ndim != 4:
    raise ValueError(
      f"weights have shape {weights.shape}; they must be [batch, heads, "
      "queries, keys]"
    )
  if image.ndim != 2 or image.shape[0] not in (1, len(weights)):
    raise ValueError(
      f"image has shape {image.shape}; for weights of shape {weights.shape} it "
      f"must be [{len(weights)} or 1, image tokens], the places of keys"
    )
  seen = weights.astype(jnp.float32).mean(1)
  seen = jnp.take_along_axis(seen, image[:, None], axis=2)
  if isinstance(query, int):
    return seen[:, query]
  return jnp.take_along_axis(seen, query[:, None, None], axis=1)[:, 0]


def normalized(attention: jax.Array) -> jax.Array:
  """Shares of the last axis, which sum to one; zero where all are zero."""
  attention = attention.astype(jnp.float32)
  total = attention.sum(-1, keepdims=True)
  return attention / jnp.where(total > 0, total, 1.0)


def contrast(
  question: jax.Array, general: jax.Array, offset: float | jax.Array = 0.0
) -> jax.Array:
  """Attention under a question, divided by that under a general instruction.

  Of A_Q = F_visual F_semantic and A_G = F_visual it is F_semantic. With an
  offset it is the minimum of (a A_G - A_Q)^2 + offset a^2 A_G (section 4).

  Args:
    question: A_Q, not negative, [..., image tokens].
    general: A_G, likewise; an image's can be kept, for no question is in it.
    offset: lambda, such that it broadcasts, as a [..., 1] from
      `median_offset`. The released code has 1e-8, with which a token that the
      general instruction hardly sees has a quotient as large as can be; the
      paper has no value.

  Returns:
    A_Q / (A_G + offset), float32 [..., image tokens]; zero where both A_G and
    offset are zero.

  Raises:
    ValueError: if the shapes differ.
  """
  if question.shape != general.shape:
    raise ValueError(
      f"question has shape {question.shape} and general {general.shape}; they "
      "must be alike"
    )
  below = general.astype(jnp.float32) + offset
  there = below > 0
  safe = jnp.where(there, below, 1.0)
  return jnp.where(there, question.astype(jnp.float32) / safe, 0.0)


def median_offset(general: jax.Array) -> jax.Array:
  """The median over the tokens of a map, [..., 1]: an offset of ours.

  It is in the map's own unit, and quotients of tokens that have far less than
  the median stay small.
  """
  return jnp.median(general.astype(jnp.float32), axis=-1, keepdims=True)


def fuse(contrasts: jax.Array, weights: jax.Array | None = None) -> jax.Array:
  """Sums contrasts over layers and steps, later steps with more weight.

  Args:
    contrasts: [..., steps, layers, image tokens]. One step, the last, is the
      paper's best; all are what the released code has by default.
    weights: [steps]; 1, 2, ... as published if None.

  Returns:
    float32 [..., image tokens].

  Raises:
    ValueError: if there are no steps and layers, or another number of weights.
  """
  if contrasts.ndim < 3:
    raise ValueError(
      f"contrasts have shape {contrasts.shape}; they must be [..., steps, "
      "layers, image tokens]"
    )
  steps = contrasts.shape[-3]
  if weights is None:
    weights = jnp.arange(1, steps + 1)
  if weights.shape != (steps,):
    raise ValueError(
      f"weights have shape {weights.shape}; for {steps} steps they must be "
      f"({steps},)"
    )
  contrasts = contrasts.astype(jnp.float32)
  return jnp.einsum(
    "...tln,t->...n",
    contrasts,
    weights.astype(jnp.float32),
    precision="highest",
  )


def attention_entropy(attention: jax.Array) -> jax.Array:
  """Entropy in nats of attention to an image's tokens, averaged over layers.

  The paper shows it to grow with what an image holds that was not asked for.
  Its figure's axis exceeds ln of the number of tokens, as bits would; this is
  its formula.

  Args:
    attention: [..., layers, image tokens], of one step; shares of it count.

  Returns:
    float32 [...], from 0 to ln(image tokens).
  """
  shares = normalized(attention)
  return -jax.scipy.special.xlogy(shares, shares).sum(-1).mean(-1)
