"""Softmax attention with a mask that is made of the layout."""

import flax.linen as nn
import jax

import attention
from attention import masks, scales
from attention.mask_base import Mask
from models import registry, taps
from models.attends.layout import Layout

SCALES = ("constant", "entropy")


def masked(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: Mask | None,
  *,
  scale: float | jax.Array | None = None,
  lengths: jax.Array | None = None,
) -> jax.Array:
  """Attends by a mask; the map is the tap "attention_weights".

  Args:
    module: see `models.attends`, and so for the arrays and `lengths`.
    q: queries.
    k: keys.
    v: values.
    mask: which keys a query sees; all if None.
    scale: of the scores; dim^(-1/2) if None.
    lengths: how many keys are real.
  """
  if lengths is not None:
    real = masks.padding(lengths)
    mask = real if mask is None else mask & real
  slots = {"scale": scale, "mask": mask}

  def attend():
    return attention.dot_product_attention(
      q, k, v, **slots, implementation=module.implementation
    )

  return taps.with_open_map(
    module,
    attend,
    lambda: attention.attention_weights(q, k, **slots),
    lambda weights: attention.apply_attention_weights(weights, v),
  )


def check_scale_by(scale_by: str) -> None:
  """Raises a ValueError for an option that is none of SCALES."""
  if scale_by not in SCALES:
    raise registry.unknown("scale_by", scale_by, SCALES)


def scale_of_visible(
  scale_by: str, mask: Mask, layout: Layout, q: jax.Array, k: jax.Array
) -> jax.Array | None:
  """Returns the `scale` of `masked` where queries see a part of the keys.

  Args:
    scale_by: "constant", or "entropy", sqrt(log_T(N)) times dim^(-1/2) for the
      N keys that a query sees and all T tokens of training (arXiv 2306.08645);
      with many keys hidden that is less than dim^(-1/2).
    mask: which keys a query sees.
    layout: where they stand.
    q: queries [batch, tokens, heads, dim].
    k: keys.

  Raises:
    ValueError: for another `scale_by`.
  """
  check_scale_by(scale_by)
  if scale_by == "constant":
    return None
  # The mask is known, so its sums are no part of the program.
  with jax.ensure_compile_time_eval():
    visible = mask.count(q.shape[1], k.shape[1])
    return scales.entropy(
      visible, layout.trained_places + layout.text, q.shape[-1]
    )
