"""Attention in linear time, between flows that are conserved."""

import functools

import flax.linen as nn
import jax

import attention
from attention import checks
from models import open_attention
from models.attends.layout import Layout


def flow(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  lengths: jax.Array | None = None,
  clip: float = 1.0,
  outer_epsilon: float = 0.0,
  competition: str = "sources",
  allocation: bool = True,
) -> jax.Array:
  """Flow attention (Flowformer, arXiv 2202.06258); see its function.

  A model is trained with it: it is no approximation of softmax attention.

  Args:
    module: see `models.attends`, and so for the arrays and `lengths`.
    q: queries.
    k: keys.
    v: values.
    layout: where they stand.
    lengths: how many keys are real.
    clip: bound of what goes out of a source before the competition, 0 for none.
      In cross-attention every source is beyond 1, as there are more queries.
    outer_epsilon: see `attention.flow_attention`, and what follows.
    competition: "sources", "heads" or "none".
    allocation: whether outputs are weighted by what comes in.

  Raises:
    ValueError: for options that there are not.
  """
  checks.number("clip", clip)
  # In joint attention what is padded among keys is padded among queries.
  joint = q.shape[1] == layout.places + layout.text
  options = {
    "clip": clip or None,
    "outer_epsilon": outer_epsilon,
    "competition": competition,
    "allocation": allocation,
    "kv_lengths": lengths,
    "q_lengths": lengths if joint else None,
  }
  attend = functools.partial(attention.flow_attention, **options)
  return open_attention.linear(
    module, attend, q, k, v, implementation=module.implementation
  )
