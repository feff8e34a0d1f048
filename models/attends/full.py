"""Attention of every token to every other."""

import flax.linen as nn
import jax

import attention
from attention import masks, scales
from models import taps
from models.attends.layout import Layout
from models.attends.masked import check_scale_by


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
    scale_by: "constant", dim^(-1/2), or "entropy", which is that times
      sqrt(log_T(N)) for N keys where training had T ("Training-free Diffusion
      Model Adaptation for Variable-Sized Text-to-Image Synthesis", arXiv
      2306.08645). The condition tokens are as many as they were.

  Raises:
    ValueError: for another `scale_by`.
  """
  check_scale_by(scale_by)
  factor = q.shape[-1] ** -0.5
  keys = k.shape[1]
  # In cross-attention the keys are the text, whatever the size of the grid.
  if scale_by == "entropy" and keys != layout.text:
    trained = keys - layout.places + layout.trained_places
    factor = scales.entropy(keys, trained, q.shape[-1])
  mask = None if lengths is None else masks.padding(lengths)
  slots = {"scale": factor, "mask": mask}

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
