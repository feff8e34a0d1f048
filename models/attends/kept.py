"""Cross-attention whose output is kept from one call of a model to another."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention import checks
from models.attends.full import full
from models.attends.layout import STATE, Layout


def kept(
  module: nn.Module,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  layout: Layout,
  *,
  lengths: jax.Array | None = None,
  write: bool = False,
  first_half: bool = False,
) -> jax.Array:
  """Writes what full attention gives, or takes what was written.

  FreeSwim (arXiv 2511.14712) has it in cross-attention, before the output
  projection: a branch with windows takes what the branch with full attention
  got.

  Args:
    module: see `models.attends`, and so for the arrays and `lengths`.
    q: queries.
    k: keys.
    v: values.
    layout: where they stand.
    lengths: how many keys are real.
    write: whether this call writes.
    first_half: whether only the first half of the batch takes what was
      written, those with a condition where guidance has two halves; the others
      attend.

  Raises:
    ValueError: if nothing was written, or for another batch or grid.
  """
  checks.flag("write", write)
  checks.flag("first_half", first_half)
  if write or module.is_initializing():
    out = full(module, q, k, v, layout, lengths=lengths)
    if write:
      module.variable(STATE, "kept", lambda: out).value = out
    return out
  if not module.has_variable(STATE, "kept"):
    raise ValueError(
      "cross_attend is 'kept' with write=False, and nothing was written: a "
      "call with write=True must come before, and its attention_state go on"
    )
  out = module.get_variable(STATE, "kept")
  if out.shape != q.shape:
    raise ValueError(
      f"what was kept has shape {out.shape} and queries have {q.shape}: batch "
      "and size of the samples must stay as they were"
    )
  if not first_half:
    return out
  half = len(q) // 2
  own = full(
    module,
    *(x[half:] for x in (q, k, v)),
    layout,
    lengths=None if lengths is None else lengths[half:],
  )
  return jnp.concatenate([out[:half], own])
