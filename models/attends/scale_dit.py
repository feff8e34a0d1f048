"""Scale-DiT's attention: near tokens, text, and a small image of the same."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention import checks, masks
from attention.mask_base import Mask
from models import positions, registry
from models.attends import scaling
from models.attends.layout import STATE, Layout, cache_by_layout
from models.attends.masked import masked

ROLES = ("high", "low")


def scale_dit(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  window: int = 16,
  scale: int = 0,
  role: str = "high",
  rotary_base: float = 10000.0,
  scale_by: str = "constant",
) -> jax.Array:
  """Attends by Scale-DiT's mask of tokens (arXiv 2510.16325).

  There the tokens of the small image, "low", are in the sequence of those of
  the image. They see neither it nor the text, so that they are what a call of
  their own gives, at time 0: one with role="low" writes their keys and values
  to "attention_state", where one with role="high" finds them. Positions of low
  are as many times as far apart as high is larger.

  Not here is the paper's LoRA, which teaches a model such tokens.

  Args:
    module: see `models.attends`, and so for the arrays.
    q: queries.
    k: keys.
    v: values.
    layout: a grid of (rows, columns).
    window: side of a window of high; high sees at most half of it to each side.
    scale: how many times as large high is as low; 0 for no low.
    role: "high" or "low", which image the grid is.
    rotary_base: of the model's rotary positions.
    scale_by: "constant" or "entropy", see `models.attends.scaling`.

  Raises:
    ValueError: for another role, a grid without rows and columns, sides that
      windows do not divide, or low of another size or batch than is written.
  """
  if role not in ROLES:
    raise registry.unknown("role of scale_dit", role, ROLES)
  if len(layout.grid) != 2:
    raise ValueError(
      f"attend is 'scale_dit', and the grid of tokens is {layout.grid}; it "
      "must be (rows, columns)"
    )
  mask = scale_dit_mask(layout, window, scale, role)
  if role == "low":
    # Turning again by its own place stretches a token's position.
    for _ in range(scale - 1):
      q, k = (
        positions.rotate_grid(x, layout.grid, base=rotary_base) for x in (q, k)
      )
    _write(module, k[:, : layout.places], v[:, : layout.places])
  elif scale:
    k, v = _with_low(module, k, v, layout, scale)
  factor = scaling.of_mask(scale_by, mask, layout, q, k)
  return masked(module, q, k, v, mask, scale=factor)


@cache_by_layout
def scale_dit_mask(layout: Layout, window: int, scale: int, role: str) -> Mask:
  """Returns the mask of `scale_dit`: grid, text and, for high, low."""
  text, places = layout.text, layout.places
  checks.whole("window", window, 1)
  checks.whole("scale", scale, 0)
  if role == "low":
    if scale < 1 or window % scale:
      raise ValueError(
        f"scale is {scale} and window {window}; low has windows of window / "
        "scale, a whole number"
      )
    radius = window // scale // 2
    near = masks.inward_window(layout.grid, (radius, radius), inward=False)
    if not text:
      return near
    # Of text only text reads what it gets, and it sees no image here.
    alone = masks.inward_window((1 + text,), (0,))
    order = np.r_[np.zeros(places, int), 1 + np.zeros(text, int)]
    beyond = np.r_[:places, np.zeros(text, int)]
    return near.reordered(beyond) & alone.reordered(order)
  low = tuple(side // scale for side in layout.grid) if scale else (0, 0)
  if scale and any(side % scale for side in layout.grid):
    raise ValueError(
      f"scale is {scale}; it must divide the sides of the grid, {layout.grid}"
    )
  mask = masks.scale_dit_tokens(text, layout.grid, low, window=window)
  # There text comes first.
  order = np.r_[text : text + places, :text]
  return mask.reordered(
    order, np.r_[order, text + places + np.arange(math.prod(low))]
  )


def _write(module: nn.Module, k: jax.Array, v: jax.Array) -> None:
  for name, x in (("low_key", k), ("low_value", v)):
    module.variable(STATE, name, lambda x=x: x).value = x


def _with_low(module, k, v, layout, scale):
  """Adds low's keys and values behind the others."""
  tokens = layout.places // scale**2
  shape = (k.shape[0], tokens, *k.shape[2:])
  if module.is_initializing():
    low = (jnp.zeros(shape, k.dtype),) * 2
  elif not module.has_variable(STATE, "low_key"):
    raise ValueError(
      f"scale is {scale}, and there are no keys of a small image: a call with "
      "role='low' must come before, and its attention_state be passed on"
    )
  else:
    low = [module.get_variable(STATE, f"low_{x}") for x in ("key", "value")]
  if low[0].shape != shape:
    raise ValueError(
      f"keys of the small image have shape {low[0].shape}; scale {scale} and a "
      f"grid of {layout.grid} need {shape}"
    )
  return (
    jnp.concatenate(parts, axis=1) for parts in zip((k, v), low, strict=True)
  )
