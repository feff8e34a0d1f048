"""Attention of every token to every other."""

import flax.linen as nn
import jax

from models.attends import scaling
from models.attends.layout import Layout
from models.attends.masked import masked


def full(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  lengths: jax.Array | None = None,
  scale_by: str = "constant",
) -> jax.Array:
  """Softmax attention; its map is the tap "attention_weights".

  Args:
    module: see `models.attends`, and so for the arrays and `lengths`.
    q: queries.
    k: keys.
    v: values.
    layout: where they stand.
    lengths: how many keys are real.
    scale_by: "constant" or "entropy", see `models.attends.scaling`. In cross-
      attention both are the same, as the text is as long as it was.

  Raises:
    ValueError: for another `scale_by`.
  """
  # In cross-attention the keys are the text, whatever the size of the grid.
  crossed = k.shape[1] == layout.text
  scaling.check(scale_by)
  scale = scaling.of_count(
    "constant" if crossed else scale_by, k.shape[1], layout, q.shape[-1]
  )
  return masked(module, q, k, v, None, scale=scale, lengths=lengths)
