"""Softmax attention with a mask that is made of the layout."""

import flax.linen as nn
import jax

from attention import masks
from attention.mask_base import Mask
from models import open_attention


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
  return open_attention.dot_product(
    module,
    q,
    k,
    v,
    implementation=module.implementation,
    scale=scale,
    mask=mask,
  )
