"""Flash attention with five slots: what is the same on TPU and GPU.

The scores are never held as a whole: kernels walk over the tiles that the mask
leaves, apply the score modifications and the mask to each, and keep the running
maximum and sum of the softmax (FlashAttention, arXiv 2205.14135). The backward
pass makes each tile again from the log-sum-exp of its rows: one kernel goes
along the rows for the gradient of the queries, one along the columns for those
of keys and values, and one over all tiles for a dense bias, if there is one.
Nothing is accumulated in an order that could change.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attention import idle, scores
from attention.kernels import (
  dispatch,
  flash_call,
  flash_few,
  flash_gpu,
  flash_sequence,
  flash_tpu,
)
from attention.kernels import flash_plan as planning
from attention.mask_base import Mask
from attention.scores import ScoreMod

_KERNELS = {"gpu": flash_gpu, "tpu": flash_tpu}
PLATFORMS = tuple(_KERNELS)


def least_keys(platform: str) -> int:
  """Returns the keys that tiles have at least; 1 where there is no kernel."""
  return _KERNELS[platform].LEAST_KEYS if platform in _KERNELS else 1


def unsupported(
  platform: str,
  q: Array,
  k: Array,
  v: Array,
  mods: Sequence[ScoreMod],
  mask: Mask | None,
) -> str | None:
  """Returns why no flash kernel takes the arguments, or None if one does.

  Args:
    platform: one of PLATFORMS.
    q: [batch, q_len, heads, dim]; `k` and `v` likewise.
    k: keys.
    v: values.
    mods: score modifications.
    mask: which keys are seen, or None.
  """
  if {x.dtype for x in (q, k, v)} - {jnp.dtype("bfloat16"), jnp.dtype("f4")}:
    return (
      f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; kernels take "
      "bfloat16 and float32"
    )
  if len({x.dtype for x in (q, k, v)}) > 1:
    return (
      f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, not all the same"
    )
  factors, left = planning.leading_factors(mods)
  if any(isinstance(mod, scores.FactoredBias) for mod in left):
    return "a factored bias comes after a modification that does not add"
  if mask is not None:
    try:
      mask.in_mixed_tile()
    except NotImplementedError as error:
      return str(error)
  q, k = jax.eval_shape(
    lambda q, k: planning.with_factors(q, k, 1.0, factors), q, k
  )
  kernels = _KERNELS[platform]
  # A device that has a part of the queries walks over the tiles of that part.
  parts, _ = flash_sequence.parts_of(kernels, q, k, mask)
  return kernels.unsupported(flash_sequence.one_part(q, parts), k, v, mask)


def flash_attention(
  q: Array,
  k: Array,
  v: Array,
  *,
  scale: float,
  mods: Sequence[ScoreMod],
  mask: Mask | None,
  weigh: str = "softmax",
  target: dispatch.Target,
) -> tuple[Array, Array]:
  """Returns `weigh(mask(mods(scale * q k^T))) v` and the log-sum-exp.

  Few queries have a way of their own through the kernels (`flash_few`), as long
  as nobody asks for gradients.

  Args:
    q: [batch, q_len, heads, dim].
    k: [batch, kv_len, k_heads, dim].
    v: [batch, kv_len, v_heads, v_dim].
    scale: factor of the scores.
    mods: score modifications, in order.
    mask: which keys are seen, or None.
    weigh: "softmax", "sigmoid" or "ones".
    target: what to build the kernel for.

  Returns:
    [batch, q_len, heads, v_dim] in the dtype of `q`, and [batch, heads, q_len]
    in float32 (of softmax only, otherwise zeros).
  """
  kernels = _KERNELS[target.platform]
  options = {"scale": scale, "weigh": weigh, "target": target}
  many = functools.partial(_many_queries, kernels, **options)
  if not flash_few.takes(kernels, q, k, v, mods, mask, weigh):
    return many(q, k, v, mods, mask)
  few = functools.partial(flash_few.few_queries, kernels, **options)
  return flash_few.unless_differentiated(few, many, q, k, v, mods, mask)


def _many_queries(kernels, q, k, v, mods, mask, *, scale, weigh, target):
  """Plans the tiles, and calls the kernels on the parts that devices have."""
  q, k, v = idle.emptied(q, k, v, mask)
  factors, mods = planning.leading_factors(mods)
  if factors and scale == 0:
    # Factors become channels divided by the scale, which multiplies them again.
    q, scale = jnp.zeros_like(q), 1.0
  q, k = planning.with_factors(q, k, scale, factors)
  parts, whole = flash_sequence.parts_of(kernels, q, k, mask)
  q_len, kv_len = q.shape[1], k.shape[1]
  block_q, block_k = kernels.block_sizes(
    flash_sequence.one_part(q, parts), flash_sequence.one_part(k, parts), mask
  )
  hides_queries = bool(mods) and q_len % block_q > 0
  if kv_len % block_k or hides_queries:
    inside = planning.Inside(q_len if hides_queries else None, kv_len)
    mask = inside if mask is None else mask & inside
  states, most = None, None
  if mask is not None:
    most = mask.most_tiles(block_k)
    states = mask.tile_states(q_len, kv_len, block_q, block_k)
    mask = mask.in_mixed_tile()
  operands = planning.all_operands(mods, mask)
  plan = planning.plan(
    planning.Plan,
    q.dtype,
    mods,
    mask,
    operands,
    scale=scale,
    weigh=weigh,
    q_len=q_len,
    kv_len=kv_len,
    block_q=block_q,
    block_k=block_k,
    listed=states is not None,
    interpret=target.interpret,
  )
  arrays = [planning.padded_operand(o, block_q, block_k) for o in operands]
  if parts > 1:
    return flash_sequence.attend(plan, kernels, q, k, v, arrays, states, parts)
  return _whole(plan, kernels, q, k, v, arrays, states, most, whole)


def _whole(plan, kernels, q, k, v, operands, states, most, reason):
  """Calls the kernels where each device has all queries and keys of a row."""
  batch, q_len, heads, _ = q.shape
  lists = flash_call.lists_of(states, most)
  listed = len(lists)
  arrays = [
    *(
      planning.arranged(x, kernels.LAYOUT, block)
      for x, block in ((q, plan.block_q), (k, plan.block_k), (v, plan.block_k))
    ),
    # A device that has a part of the batch or the heads must know which.
    jnp.arange(batch, dtype=jnp.int32),
    jnp.arange(heads, dtype=jnp.int32),
    *map(jnp.asarray, lists),
    *operands,
  ]

  def on_device(q, k, v, batch, heads, *rest):
    lists, operands = rest[:listed], rest[listed:]
    return flash_call.attend(
      plan, kernels, q, k, v, operands, (batch, heads), lists
    )

  out, lse = dispatch.per_device(
    on_device,
    arrays,
    [kernels.LAYOUT] * 3 + ["b", "h"] + ["bhij"] * listed + list(plan.axes),
    [kernels.LAYOUT, "bhn"],
    whole=reason,
  )
  if kernels.LAYOUT == "bhnd":
    out = out.swapaxes(1, 2)
  return out[:, :q_len], lse[:, :, :q_len]
