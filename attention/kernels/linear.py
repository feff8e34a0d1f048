"""Linear attention on TPUs: what the kernels take, and how they are called."""

import jax
import jax.numpy as jnp

from attention import features, linear_normalizers, linear_sequence
from attention.kernels import (
  linear_causal,
  linear_memory,
  linear_plan,
  linear_tiles,
)
from attention.kernels.tpu import SUBLANES, unsupported_arrays

# Maps that Mosaic lowers, with the vector-Jacobian product JAX derives.
MAPS = (
  features.identity,
  features.relu,
  features.relu_epsilon,
  features.elu_plus_one,
  features.sigmoid,
  features.softmax,
  features.taylor,
)
NORMALIZERS = (
  linear_normalizers.Division,
  linear_normalizers.Subtraction,
  linear_normalizers.Identity,
)
# Tokens that are worked on at once, and how many where features are many.
PART = 512
WIDE = 256
WIDE_PART = 128


def unsupported(
  q,
  k,
  v,
  *,
  feature_map,
  normalizer,
  causal,
  decay,
  write_strength,
  state,
  return_state,
) -> str | None:
  """Says why the kernels cannot take these arguments, or returns None."""
  if feature_map not in MAPS:
    return (
      f"feature_map is {feature_map!r}; the kernel has "
      f"{', '.join(f.__name__ for f in MAPS)}"
    )
  if type(normalizer) not in NORMALIZERS:
    return (
      f"normalizer is {normalizer!r}; the kernel has "
      f"{', '.join(kind.__name__ for kind in NORMALIZERS)}"
    )
  if causal and isinstance(normalizer, linear_normalizers.Subtraction):
    return "normalizer is Subtraction; the causal kernel keeps no mean"
  if decay is not None:
    return "decay is given; the kernel's memory does not decay"
  if write_strength is not None:
    return "write_strength is given; the kernel adds to its memory only"
  if state is not None or return_state:
    return "a state is passed on; the kernel keeps its memory to itself"
  reason = unsupported_arrays(q, k, v)
  if reason is not None:
    return reason
  if max(q.shape[-1], v.shape[-1]) > 256:
    return f"heads are wider than 256: q has {q.shape[-1]}, v {v.shape[-1]}"
  if feature_map is features.taylor and q.shape[-1] > 32:
    return f"q has dimension {q.shape[-1]}; Taylor features need at most 32"
  return None


def attend(
  q,
  k,
  v,
  key_gate,
  value_gate,
  lengths,
  *,
  feature_map,
  normalizer,
  causal,
  parts=1,
  interpret=False,
):
  """Returns linear attention [batch, q_len, heads, v_dim], like `q`.

  Where devices share a sequence, arrays are what this device has of it, and
  `lengths` those of the whole.

  Args:
    q: [batch, q_len, heads, dim].
    k: [batch, kv_len, heads, dim].
    v: [batch, kv_len, heads, v_dim]. Padding may hold anything.
    key_gate: [batch or 1, kv_len, heads or 1], a factor of phi(k), or None.
    value_gate: likewise, of values.
    lengths: [batch], how many keys are no padding; all if None. With `causal`
      queries are padding too, and get zeros.
    feature_map: phi, one of MAPS.
    normalizer: what becomes of the sums, one of NORMALIZERS.
    causal: whether query i sees only keys j <= i.
    parts: how many devices share a sequence.
    interpret: whether Pallas's interpreter runs the kernels.
  """
  batch, kv_len, _, dim = k.shape
  v_dim = v.shape[3]
  # Whole registers of channels, so that the ones come right below.
  v = jnp.pad(v, ((0, 0),) * 3 + ((0, -v_dim % SUBLANES),))
  # [B, N, H, D] -> [B, H, D, N]
  q, k, v = (x.transpose(0, 2, 3, 1) for x in (q, k, v))
  # [B, N, H] -> [B, H, 1, N]
  gates = [
    None
    if gate is None
    else gate.astype(jnp.float32).transpose(0, 2, 1)[:, :, None]
    for gate in (key_gate, value_gate)
  ]
  mapped = linear_tiles.of_rows(feature_map)
  features_of_one = jax.eval_shape(
    mapped, jax.ShapeDtypeStruct((dim, 1), jnp.float32)
  )
  plan = linear_plan.Plan(
    feature_map=mapped,
    normalizer=normalizer,
    features=features_of_one.shape[0],
    v_dim=v.shape[2],
    dim=dim,
    dtype=q.dtype.name,
    part=PART if features_of_one.shape[0] <= WIDE else WIDE_PART,
    padded=lengths is not None,
    interpret=interpret,
    continued=causal and parts > 1,
  )
  if lengths is None:
    lengths = jnp.full((batch,), kv_len * parts, jnp.int32)
  lengths = jnp.minimum(lengths.astype(jnp.int32), kv_len * parts)
  own, first = lengths, None
  if parts > 1:
    start = linear_sequence.start_of(kv_len)
    own = jnp.clip(lengths - start, 0, kv_len)
  if not causal or parts > 1:
    memory = linear_memory.make(plan, k, v, *gates, own)
  if not causal:
    if parts > 1:
      memory = linear_sequence.summed(memory)
    out = linear_memory.read(plan, q, memory, lengths)
  else:
    if parts > 1:
      first, _ = linear_sequence.before_and_after(memory)
      own = jnp.concatenate([own, jnp.minimum(lengths, start)])
    out = linear_causal.attend(plan, q, k, v, *gates, own, first)
  return out[:, :, :v_dim].transpose(0, 3, 1, 2)
