"""Attention rollout: where a layer's tokens come from, through all before it.

"Quantifying Attention Flow in Transformers" (arXiv 2005.00928): a layer mixes
tokens by its attention and keeps them by its residual sum, so that with
A_l = (W_l + I) / 2, whose rows sum to one, what layer l's tokens are made of is
A_l A_(l-1) ... A_1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import interpret
from interpret import tap_names
from models import registry

HEADS = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}


def rollout(
  maps: Sequence[jax.Array], residual: float = 0.5, heads: str = "mean"
) -> jax.Array:
  """Multiplies the maps of layers.

  Args:
    maps: of each layer, the first first, [batch, heads, tokens, tokens] each,
      not negative. A query without weights, as padding, stays itself.
    residual: the share of the residual sum, 0.5 in the paper.
    heads: how heads become one, a key of HEADS; "mean" in the paper, the others
      are ours.

  Returns:
    float32 [layers, batch, tokens, tokens]: of each layer's output the shares
    of the model's tokens; rows sum to one.

  Raises:
    ValueError: if a shape, the share or the name does not fit.
  """
  if heads not in HEADS:
    raise registry.unknown("way to join heads", heads, HEADS)
  if not 0 <= residual <= 1:
    raise ValueError(f"residual is {residual}; a share is from 0 to 1")
  if not maps:
    raise ValueError("maps is empty; there must be one for each layer")
  shape = maps[0].shape
  for i, weights in enumerate(maps):
    if weights.ndim != 4 or (weights.shape[0], *weights.shape[2:]) != (
      shape[0],
      shape[-1],
      shape[-1],
    ):
      raise ValueError(
        f"maps[{i}] has shape {weights.shape}; all must be [batch, heads, "
        f"tokens, tokens] with batch and tokens of maps[0], {shape}"
      )
  eye = jnp.eye(shape[-1])[None]
  total, layers = eye, []
  for weights in maps:
    joined = HEADS[heads](weights.astype(jnp.float32), axis=1)
    mixed = residual * eye + (1 - residual) * joined
    sums = mixed.sum(-1, keepdims=True)
    mixed = jnp.where(sums > 0, mixed / jnp.where(sums > 0, sums, 1.0), eye)
    total = mixed @ total
    layers.append(total)
  return jnp.stack(layers)


def of_model(
  model: nn.Module,
  variables: Mapping[str, Any],
  inputs: Any,
  *,
  tap: str = "layer_*/mixer/attention_weights",
  residual: float = 0.5,
  heads: str = "mean",
  **options: Any,
) -> jax.Array:
  """The `rollout` of a model, whose other arguments these are.

  Args:
    model: whose attention maps are taps, of the same tokens in all layers.
    variables: its variables.
    inputs: as `interpret.run` has them.
    tap: pattern of the maps; "block_*/mixer/attention_weights" of a ViT.
    residual: see `rollout`.
    heads: see `rollout`.
    **options: of `model.apply`, as `positions=`.

  Returns:
    float32 [layers, batch, tokens, tokens].

  Raises:
    ValueError: if no map fits, or they do not go together.
  """
  known = interpret.list_taps(model, variables, inputs, **options)
  names = tap_names.matching(tap, known)
  _, maps = interpret.run(model, variables, inputs, read=names, **options)
  return rollout([maps[name] for name in names], residual, heads)
