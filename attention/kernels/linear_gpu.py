"""Linear attention on NVIDIA GPUs: what the kernels take, and their call."""

import jax.numpy as jnp

from attention import features, linear_normalizers, linear_sequence
from attention.kernels import linear_gpu_make, linear_gpu_read, triton
from attention.kernels.linear_gpu_memory import Plan

# Maps of one channel by itself; softmax needs all channels in one tile.
ELEMENTWISE = (
  features.identity,
  features.relu,
  features.relu_epsilon,
  features.elu_plus_one,
  features.sigmoid,
)
NORMALIZERS = (
  linear_normalizers.Division,
  linear_normalizers.Subtraction,
  linear_normalizers.Identity,
)
# The most channels of a head.
MOST_DIM = 128


def unsupported_gpu(
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
  dim, v_dim = q.shape[-1], v.shape[-1]
  whole = triton.tile_size(dim) == dim
  if feature_map not in ELEMENTWISE and not (
    feature_map is features.softmax and whole
  ):
    return (
      f"feature_map is {feature_map!r}; the kernel has "
      f"{', '.join(f.__name__ for f in ELEMENTWISE)}, and softmax for powers "
      "of two"
    )
  if not causal and type(normalizer) not in NORMALIZERS:
    return (
      f"normalizer is {normalizer!r}; the kernel has "
      f"{', '.join(kind.__name__ for kind in NORMALIZERS)}"
    )
  if decay is not None:
    return "decay is given; the kernel's memory does not decay"
  if write_strength is not None:
    return "write_strength is given; the kernel adds to its memory only"
  if state is not None or return_state:
    return "a state is passed on; the kernel keeps its memory to itself"
  if max(dim, v_dim) > MOST_DIM:
    return f"heads are wider than {MOST_DIM}: q has {dim}, v {v_dim}"
  return triton.unsupported_dtypes(q=q, k=k, v=v)


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
  """Returns linear attention among all tokens, like `kernels.linear.attend`.

  Causal attention has sums only, by `linear_gpu_causal`.
  """
  if causal:
    raise ValueError("causal is True; `linear_gpu_causal` has its sums")
  plan = Plan(feature_map, normalizer, q.dtype == jnp.float32, interpret)
  kv_len = k.shape[1]
  own = lengths
  if lengths is not None:
    lengths = jnp.minimum(lengths.astype(jnp.int32), kv_len * parts)
    own = lengths
    if parts > 1:
      start = linear_sequence.start_of(kv_len)
      own = jnp.clip(lengths - start, 0, kv_len)
  memory = linear_gpu_make.make(plan, k, v, key_gate, value_gate, own)
  if parts > 1:
    memory = linear_sequence.summed(memory)
  keys = kv_len * parts, v.shape[3]
  return linear_gpu_read.read(plan, keys, q, memory, lengths)
