"""What a diffusion transformer refuses before any work is done."""

from typing import Any

import jax
import jax.numpy as jnp

from models import attends, grid_mixers, input_checks, registry

CONDITIONINGS = ("adaptive", "cross", "joint")
POSITIONS = ("sincos", "rotary")


def check_fields(model: Any) -> None:
  """Raises ValueError if fields of the model do not exist or fit together."""
  for field, known in (
    ("conditioning", CONDITIONINGS),
    ("position_encoding", POSITIONS),
  ):
    if getattr(model, field) not in known:
      raise registry.unknown(field, getattr(model, field), known)
  _check_sizes(model)
  _check_conditions(model)
  grid_mixers.check(
    model.mixer, model.mixer_options, joint=model.conditioning == "joint"
  )
  for field in ("attend", "cross_attend"):
    options = getattr(model, f"{field}_options")
    attends.check(field, getattr(model, field), options)


def _check_sizes(model: Any) -> None:
  axes = len(model.sample_shape)
  if not 1 <= axes <= 3 or min(model.sample_shape) < 1:
    raise ValueError(
      f"sample_shape is {model.sample_shape}; it must be one to three sides of "
      "at least 1"
    )
  if len(model.patch_size) != axes or min(model.patch_size) < 1:
    raise ValueError(
      f"patch_size is {model.patch_size}; sample_shape={model.sample_shape} "
      f"needs {axes} numbers of at least 1"
    )
  _check_divides("sample_shape", model.sample_shape, model.patch_size)
  for field in ("channels", "depth", "heads"):
    if getattr(model, field) < 1:
      raise ValueError(
        f"{field} is {getattr(model, field)}; it must be at least 1"
      )
  if model.width % model.heads or model.width < 1:
    raise ValueError(
      f"width is {model.width}; it must be a multiple of heads={model.heads}"
    )
  channels, of = model.width, "width"
  if model.position_encoding == "rotary":
    channels, of = model.width // model.heads, "width / heads"
  if channels % 2 or channels < 2 * axes:
    raise ValueError(
      f"width is {model.width} and heads {model.heads}; "
      f"position_encoding={model.position_encoding!r} of {axes} axes needs "
      f"{of} to be an even number from {2 * axes} on"
    )
  if not 0 <= model.dense_layers <= model.depth:
    raise ValueError(
      f"dense_layers is {model.dense_layers}; the model has 0 to {model.depth}"
    )
  guided = model.guided_channels
  if guided is not None and not 1 <= guided <= model.channels:
    raise ValueError(
      f"guided_channels is {guided}; it must be 1 to {model.channels}, or None "
      "for all"
    )


def _check_conditions(model: Any) -> None:
  if model.num_classes < 0 or model.label_tokens < 1 or model.text_width < 0:
    raise ValueError(
      f"num_classes is {model.num_classes}, label_tokens {model.label_tokens} "
      f"and text_width {model.text_width}; they must be at least 0, 1 and 0"
    )
  if model.text_width and model.conditioning == "adaptive":
    raise ValueError(
      f"text_width is {model.text_width}, and conditioning='adaptive' reads no "
      f"text; {' and '.join(CONDITIONINGS[1:])} do"
    )
  if model.text_width and model.num_classes:
    raise ValueError(
      f"text_width is {model.text_width} and num_classes {model.num_classes}; "
      "one of them must be 0"
    )


def check_inputs(
  model: Any,
  x: jax.Array,
  time: jax.Array,
  label: jax.Array | None,
  text: jax.Array | None,
  text_length: jax.Array | None,
) -> None:
  """Raises ValueError unless the arguments of the model's call fit."""
  sides = [f"side {i}" for i in range(len(model.sample_shape))]
  input_checks.shape("x", x, ("batch", *sides, model.channels), jnp.floating)
  _check_divides("x", x.shape[1:-1], model.patch_size)
  input_checks.shape("time", time, (len(x),), jnp.floating)
  if label is not None:
    if not model.num_classes:
      raise ValueError("label is given, and num_classes is 0: leave it out")
    wanted = (len(x), model.label_tokens)
    if model.label_tokens == 1 and label.ndim == 1:
      wanted = wanted[:1]
    input_checks.shape("label", label, wanted, jnp.integer)
    input_checks.indices("label", label, model.num_classes, "no class")
  if text is not None:
    if not model.text_width:
      raise ValueError("text is given, and text_width is 0: leave it out")
    wanted = (len(x), "tokens", model.text_width)
    input_checks.shape("text", text, wanted, jnp.floating)
  if text_length is None:
    return
  if text is None:
    raise ValueError("text_length is given without a text")
  input_checks.shape("text_length", text_length, (len(x),), jnp.integer)
  input_checks.indices(
    "text_length", text_length, text.shape[1], "the whole text"
  )
  field = "attend" if model.conditioning == "joint" else "cross_attend"
  options = getattr(model, f"{field}_options")
  attends.check(field, getattr(model, field), options, padded=True)


def _check_divides(name: str, shape: Any, patch: Any) -> None:
  for axis, (side, p) in enumerate(zip(shape, patch, strict=True)):
    if side < p or side % p:
      fits = max(1, round(side / p)) * p
      raise ValueError(
        f"{name} has sides {tuple(shape)}; patch_size={tuple(patch)} needs "
        f"multiples of it, as {fits} in place of {side} along axis {axis}"
      )
