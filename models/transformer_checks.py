"""What a transformer refuses before any work is done."""

from typing import Any

import jax
import jax.numpy as jnp

from models import feed_forward, registry
from models import sequence_mixers as mixers

POSITION_ENCODINGS = ("rotary", "learned", "alibi", "none")
NORM_PLACEMENTS = ("pre", "post", "sandwich")
RESIDUALS = ("sum", "attention")


def check_fields(model: Any) -> None:
  """Raises ValueError if fields of a `Transformer` contradict each other."""
  for field, known in (
    ("norm_placement", NORM_PLACEMENTS),
    ("position_encoding", POSITION_ENCODINGS),
    ("residual", RESIDUALS),
  ):
    if getattr(model, field) not in known:
      raise registry.unknown(field, getattr(model, field), known)
  if model.mlp != "none" or model.head_transform:
    feed_forward.find(model.mlp)
  if not model.head_dim and model.width % model.heads:
    raise ValueError(
      f"heads is {model.heads}, which does not divide width={model.width}; "
      "give head_dim, or a number of heads that does"
    )
  if not model.residual_clip >= 0:
    raise ValueError(
      f"residual_clip is {model.residual_clip}; it must be a size, or 0 for "
      "none"
    )
  if model.classes and model.tied_head:
    raise ValueError(
      f"classes is {model.classes}, and with tied_head=True logits are those "
      "of tokens; it needs tied_head=False"
    )
  _check_residual(model)
  _check_pattern(model)


def check_arrays(
  vocabulary_size: int, tokens: jax.Array, **others: jax.Array | None
) -> None:
  """Raises ValueError unless all are integers [batch, length], or None.

  Tokens may be mixtures, [batch, length, vocabulary_size] and not integers.
  """
  if tokens.ndim == 3:
    _check_mixtures(vocabulary_size, tokens)
  elif tokens.ndim != 2:
    raise ValueError(
      f"tokens has shape {tokens.shape}; it must be [batch, length]"
    )
  else:
    others = {"tokens": tokens, **others}
  for name, x in others.items():
    if x is None:
      continue
    if not jnp.issubdtype(x.dtype, jnp.integer):
      raise ValueError(f"{name} is {x.dtype}; it must be integers, as int32")
    if x.shape != tokens.shape[:2]:
      raise ValueError(
        f"{name} has shape {x.shape}; tokens of shape {tokens.shape} need "
        f"{tokens.shape[:2]}"
      )


def _check_mixtures(vocabulary_size: int, tokens: jax.Array) -> None:
  if tokens.shape[-1] != vocabulary_size:
    raise ValueError(
      f"tokens has shape {tokens.shape}; mixtures of tokens need "
      f"vocabulary_size={vocabulary_size} numbers each, tokens none"
    )
  if not jnp.issubdtype(tokens.dtype, jnp.floating):
    raise ValueError(
      f"tokens is {tokens.dtype} [batch, length, vocabulary_size]; mixtures of "
      "tokens must be floating, as float32"
    )


def _check_residual(model: Any) -> None:
  if model.residual_block < 1:
    raise ValueError(
      f"residual_block is {model.residual_block}; it must be at least 1, the "
      "number of branches that are summed"
    )
  if model.residual == "sum" and model.residual_block != 1:
    raise ValueError(
      f"residual_block is {model.residual_block}, which goes with "
      "residual='attention'; residual is 'sum'"
    )
  if model.residual == "attention" and model.norm_placement == "post":
    raise ValueError(
      "norm_placement is 'post', which normalises a sum that "
      "residual='attention' does not have; it goes with 'pre' and 'sandwich'"
    )
  if model.residual == "attention" and model.residual_clip:
    raise ValueError(
      f"residual_clip is {model.residual_clip}, and residual='attention' has "
      "no stream that grows; it goes with residual='sum'"
    )


def _check_pattern(model: Any) -> None:
  for name in model.mixers:
    mixers.find(name)
  if not model.mixers or model.depth % len(model.mixers):
    raise ValueError(
      f"mixers is {model.mixers}, a pattern of {len(model.mixers)} layers; its "
      f"length must divide depth={model.depth}"
    )
  for name in model.mixer_options:
    if name not in model.mixers:
      raise registry.unknown("mixer of mixer_options", name, model.mixers)
  if model.scan_layers and not model.first_mixer_norm:
    raise ValueError(
      "scan_layers is True, but first_mixer_norm=False makes a first layer "
      "that is unlike the others"
    )
