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
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attention import scores
from attention.kernels import dispatch, flash_tpu
from attention.kernels import flash_plan as planning
from attention.mask_base import Mask
from attention.scores import ScoreMod

# Kernels keep the list of tiles in scalar memory, 4 bytes an entry.
MAX_LISTED_TILES = 180_000


def unsupported(
  q: Array, k: Array, v: Array, mods: Sequence[ScoreMod], mask: Mask | None
) -> str | None:
  """Returns why no flash kernel takes the arguments, or None if one does.

  Args:
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
  left = planning.with_factors(q, k, 1.0, mods)[2]
  if any(isinstance(mod, scores.FactoredBias) for mod in left):
    return "a factored bias comes after a modification that does not add"
  if mask is None:
    return None
  try:
    mask.in_mixed_tile()
  except NotImplementedError as error:
    return str(error)
  block_q, block_k = _block_sizes(q.shape[1], k.shape[1], mask)
  if block_q % 8 or block_k % 128:
    return (
      f"tiles of {block_q} x {block_k}, which the mask asks for, are not "
      "multiples of 8 x 128"
    )
  tiles = -(-q.shape[1] // block_q) * -(-k.shape[1] // block_k)
  if tiles > MAX_LISTED_TILES:
    return (
      f"the mask has {tiles} tiles of {block_q} x {block_k}; the list holds "
      f"{MAX_LISTED_TILES}"
    )
  return None


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
  q, k, mods = planning.with_factors(q, k, scale, mods)
  batch, q_len, heads, _ = q.shape
  kv_len = k.shape[1]
  block_q, block_k = _block_sizes(q_len, kv_len, mask)
  if kv_len % block_k:
    inside = planning.KeysInside(kv_len)
    mask = inside if mask is None else mask & inside
  lists = []
  if mask is not None:
    states = mask.tile_states(q_len, kv_len, block_q, block_k)
    lists = [planning.tile_list(x) for x in (states, states.swapaxes(2, 3))]
    # The gradient of a dense bias goes over all tiles.
    lists.append(states)
    mask = mask.in_mixed_tile()
  mod_operands = [operand for mod in mods for operand in mod.operands()]
  operands = [*mod_operands, *(() if mask is None else mask.operands())]
  plan = planning.Plan(
    mods=tuple(mods),
    mask=mask,
    axes=tuple(o.axes for o in operands),
    mod_operands=len(mod_operands),
    booleans=tuple(o.array.dtype == bool for o in operands),
    scale=scale,
    weigh=weigh,
    q_len=q_len,
    kv_len=kv_len,
    block_q=block_q,
    block_k=block_k,
    listed=bool(lists),
    precision=jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
    interpret=target.interpret,
  )
  arrays = [
    # [batch, length, heads, dim] -> [batch, heads, whole tiles, dim]
    *(
      planning.padded(x.swapaxes(1, 2), 2, block)
      for x, block in ((q, block_q), (k, block_k), (v, block_k))
    ),
    # A device that has a part of the batch or the heads must know which.
    jnp.arange(batch, dtype=jnp.int32),
    jnp.arange(heads, dtype=jnp.int32),
    *map(jnp.asarray, lists),
    *(planning.padded_operand(o, block_q, block_k) for o in operands),
  ]
  out, lse = dispatch.per_device(
    functools.partial(_grouped, plan, _KERNELS[target.platform]),
    arrays,
    ["bhnd"] * 3 + ["b", "h"] + ["bhij"] * len(lists) + list(plan.axes),
    ["bhnd", "bhn"],
  )
  return out[:, :, :q_len].swapaxes(1, 2), lse[:, :, :q_len]


def _block_sizes(q_len: int, kv_len: int, mask: Mask | None) -> tuple[int, int]:
  """Returns the sides of a tile: 512, less for short or fine-grained calls."""
  sizes = [
    min(512, -(-q_len // 16) * 16),
    min(512, -(-kv_len // 128) * 128),
  ]
  multiples = (0, 0) if mask is None else mask.tile_multiples()
  # The greatest common divisor of a size and 0 is the size.
  return tuple(
    math.gcd(512 if multiple else size, multiple)
    for size, multiple in zip(sizes, multiples, strict=True)
  )


def _grouped(plan, kernels, q, k, v, batch, heads, *rest):
  """Gives the arrays of a kernel call their places."""
  lists, operands = rest[: 3 * plan.listed], rest[3 * plan.listed :]
  return _flash(plan, kernels, q, k, v, operands, (batch, heads), lists)


_KERNELS = {"tpu": flash_tpu}
PLATFORMS = tuple(_KERNELS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _flash(plan, kernels, q, k, v, operands, indices, lists):
  return kernels.forward(plan, q, k, v, operands, indices, lists)


def _flash_forward(plan, kernels, q, k, v, operands, indices, lists):
  out, lse = kernels.forward(plan, q, k, v, operands, indices, lists)
  return (out, lse), (q, k, v, operands, indices, lists, out, lse)


def _flash_backward(plan, kernels, residuals, cotangents):
  q, k, v, operands, indices, lists, out, lse = residuals
  d_out, d_lse = cotangents
  # The gradient of a score is p * (d_out v - delta): the softmax takes away
  # the mean of d_out v over the row, and the log-sum-exp adds its own.
  delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
  delta = jnp.where(jnp.isfinite(lse), delta - d_lse, 0.0)
  # A row without keys has weights exp(s - inf) = 0.
  lse = jnp.where(jnp.isfinite(lse), lse, -planning.MASKED)
  d_q, d_k, d_v, d_operands = kernels.backward(
    plan, q, k, v, operands, indices, lists, d_out, lse, delta
  )
  differentiated = (
    gradient.reshape(x.shape).astype(x.dtype)
    if jnp.issubdtype(x.dtype, jnp.floating)
    else np.zeros(x.shape, jax.dtypes.float0)
    for gradient, x in zip(d_operands, operands, strict=False)
  )
  fixed = (
    np.zeros(x.shape, jax.dtypes.float0) for x in operands[plan.mod_operands :]
  )
  return d_q, d_k, d_v, (*differentiated, *fixed), None, None


_flash.defvjp(_flash_forward, _flash_backward)
