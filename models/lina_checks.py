"""What LINA refuses before any work is done."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from models import input_checks, lina_attention, lina_layers, registry


def check_fields(model: Any) -> None:
  """Raises ValueError if fields of a `Lina` do not exist or fit together."""
  for field, known in (
    ("attention", lina_attention.ATTENTIONS),
    ("normalizer", lina_attention.NORMALIZERS),
    ("gate", lina_attention.GATES),
  ):
    if getattr(model, field) not in known:
      raise registry.unknown(field, getattr(model, field), known)
  if model.attention == "softmax" and model.gate != "none":
    raise ValueError(
      f"gate is {model.gate!r}, of linear attention; attention='softmax' needs "
      "gate='none'"
    )
  if model.gate == "split" and model.normalizer != "division":
    raise ValueError(
      "gate is 'split', with a gate of its own in the denominator; it needs "
      f"normalizer='division', not {model.normalizer!r}"
    )
  _check_sizes(model)


def _check_sizes(model: Any) -> None:
  if model.width % model.heads or model.width % 4:
    raise ValueError(
      f"width is {model.width}; it must be a multiple of heads={model.heads} "
      "and of 4"
    )
  side = math.isqrt(model.queries)
  if side**2 != model.queries or not side:
    raise ValueError(
      f"queries is {model.queries}; it must be a square, as {max(1, side) ** 2}"
    )
  if min(model.grid) < 1:
    raise ValueError(f"grid is {model.grid}; both must be at least 1")
  if model.token_dim < 1 or model.token_dim % model.patch_size**2:
    raise ValueError(
      f"token_dim is {model.token_dim}; patch_size={model.patch_size} needs a "
      f"multiple of {model.patch_size**2}, the latents of a token"
    )


def check_condition(
  model: Any, given: jax.Array, lengths: jax.Array | None
) -> None:
  """Raises ValueError unless `given` is what the model is conditioned on."""
  if model.text_width:
    input_checks.shape(
      "text", given, ("batch", "tokens", model.text_width), jnp.floating
    )
    if given.shape[1] > lina_layers.MAX_TEXT:
      raise ValueError(
        f"text has {given.shape[1]} tokens; there are at most "
        f"{lina_layers.MAX_TEXT}"
      )
    if lengths is not None:
      input_checks.shape("lengths", lengths, given.shape[:1], jnp.integer)
    return
  if lengths is not None:
    raise ValueError("lengths are of texts; this model has classes")
  input_checks.shape("labels", given, ("batch",), jnp.integer)
  input_checks.indices("labels", given, model.num_classes, "no class")


def check_tokens(
  model: Any, condition: jax.Array, tokens: jax.Array, visible: jax.Array
) -> None:
  """Raises ValueError unless the arguments of `encode_decode` fit."""
  places, batch = math.prod(model.grid), len(tokens)
  input_checks.shape(
    "tokens", tokens, (batch, places, model.token_dim), jnp.floating
  )
  wanted = batch, model.queries, model.width
  input_checks.shape("condition", condition, wanted, jnp.floating)
  input_checks.shape("visible", visible, (batch, "V"), jnp.integer)
  if visible.shape[1] > places:
    raise ValueError(
      f"visible has shape {visible.shape}; an image has {places} tokens, so V "
      "must be at most that"
    )
  input_checks.indices("visible", visible, places, "padding")


def check_velocity(
  model: Any, x_t: jax.Array, t: jax.Array, z: jax.Array
) -> None:
  """Raises ValueError unless the arguments of `velocity` fit."""
  lead = x_t.shape[:-1]
  input_checks.shape("x_t", x_t, (*lead, model.token_dim), jnp.floating)
  for name, have, last in (("t", t.shape, ()), ("z", z.shape, (model.width,))):
    axes = have[: len(have) - len(last)]
    fits = len(axes) == len(lead) and all(
      n in (1, m) for n, m in zip(axes, lead, strict=True)
    )
    if not fits or have[len(axes) :] != last:
      raise ValueError(
        f"{name} has shape {have}; x_t of shape {x_t.shape} needs "
        f"{(*lead, *last)}, or ones in place of leading axes"
      )


def check_latents(model: Any, latents: jax.Array) -> None:
  """Raises ValueError unless `latents` are of the images of the model."""
  p = model.patch_size
  sides = (n * p for n in model.grid)
  input_checks.shape(
    "latents",
    latents,
    ("batch", *sides, model.token_dim // p**2),
    jnp.floating,
  )
