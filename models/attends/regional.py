"""Cross-attention of a region to a prompt for all and a prompt of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from attention import checks, masks
from models import open_attention
from models.attends.layout import STATE, Layout

# The name of the gates in STATE.
BIAS = "bias"


def regional(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  lengths: jax.Array | None = None,
  mix: float = 0.0,
) -> jax.Array:
  """(1 - mix) attention to the global prompt + mix attention to the region's.

  The composer and the gate of C-Upscale as our fact sheet specifies them, for
  "Creatively Upscaling Images with Global-Regional Priors" (arXiv 2505.16976)
  publishes no code; formulas are ours. The condition tokens are the start
  token, those of the global prompt, and as many of the region's if `mix` is not
  0; each of the two prompts has the start token. The map of the global prompt
  is the tap "attention_weights".

  The variable "bias" of the collection "attention_state", float [batch,
  queries, 1 + tokens of the global prompt], is added to that prompt's scores,
  the gate; without one there is none.

  Args:
    module: see `models.attends`, and so for the arrays.
    q: queries.
    k: keys.
    v: values.
    layout: where they stand.
    lengths: how many keys are real, in the order above.
    mix: from 0 to 1.

  Raises:
    ValueError: for a `mix` beyond 0 to 1, or tokens that are no two prompts.
  """
  checks.share("mix", mix)
  del layout
  keys = k.shape[1]
  if mix and keys % 2 == 0:
    raise ValueError(
      f"mix is {mix}, which needs two prompts of equal length: there are "
      f"{keys - 1} tokens behind the start token"
    )
  if not mix:
    return _global(module, q, k, v, lengths)
  both = 1 + keys // 2
  region_lengths = None
  if lengths is not None:
    region_lengths = 1 + jnp.maximum(lengths - both, 0)
    lengths = jnp.minimum(lengths, both)
  own = jnp.array([0, *range(both, keys)])
  region = attention.dot_product_attention(
    q,
    k[:, own],
    v[:, own],
    mask=_mask(region_lengths),
    implementation=module.implementation,
  )
  shared = _global(module, q, k[:, :both], v[:, :both], lengths)
  return (1 - mix) * shared + mix * region


def _global(module, q, k, v, lengths):
  """Attention to the global prompt, with the gate if there is one."""
  bias = None
  if module.has_variable(STATE, BIAS):
    bias = module.get_variable(STATE, BIAS)[:, None]
  return open_attention.dot_product(
    module,
    q,
    k,
    v,
    implementation=module.implementation,
    bias=bias,
    mask=_mask(lengths),
  )


def _mask(lengths):
  return None if lengths is None else masks.padding(lengths)
